"""Compiles output formats into llguidance grammars, each once while it is in use.

The counterpart of vLLM's `StructuredOutputManager` with its guidance backend. Library: llguidance,
https://github.com/guidance-ai/llguidance.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection
from weakref import WeakValueDictionary

from cachetools import LRUCache
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from adapterhub.engine.decoding.completion_search import CompletionSearch, NoCompletion, matcher_error
from adapterhub.engine.decoding.deep_stack import call_with_deep_stack
from adapterhub.engine.decoding.grammar_constraint import CompiledGrammar, GrammarConstraint
from adapterhub.engine.decoding.minimal_tokenizer import MinimalTokenizer
from adapterhub.engine.decoding.schema_grammar import (
    PARSER_LIMITS,
    check_grammar_numbers,
    check_schema_numbers,
    schema_grammar,
    unenforceable_part,
)
from adapterhub.engine.output_format import OutputFormat
from adapterhub.errors import AdapterHubError, InvalidRequestError, RequestTooLongError, is_interrupt

MAX_COMPILED = 256
"""Maximum number of cached compiled grammars; the least recently used is evicted first."""
MAX_SECONDS = 5.0
"""Maximum processor time of the search for the shortest answer of an output format."""
_MAX_STATES = 50_000  # states that this search may visit: at most a second or so, but for long answers
_LIMITED_RULE = re.compile(r"^\s*\w+\s*\[[^]\n]*\b(max_tokens|stop)\s*=", re.MULTILINE)
_NAMES = {
    "schema": "schema",
    "regex": "regular expression",
    "grammar": "grammar",
    "choices": "list of choices",
}


class _TimeUpError(InvalidRequestError):
    """The search for the shortest answer took too long."""


class GrammarCompiler:
    """Compiles output formats for one tokenizer. Thread-safe.

    The vocabulary is converted here and not at the first request: it takes a second or two for a large one and holds
    Python's lock for as long, which would block an event loop whichever thread asked.

    Args:
        tokenizer: The base's; a fast one.
        vocab_size: Width of the base's logits.
        end_ids: The base's end tokens.
        max_compiled: Maximum number of compiled grammars to cache.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        end_ids: Collection[int],
        *,
        max_compiled: int = MAX_COMPILED,
    ) -> None:
        self._vocab_size = vocab_size
        self._vocabulary = _convert_vocabulary(tokenizer, vocab_size, sorted(end_ids))
        # With the errors of formats that cannot be enforced: asked for again, they would take as long again.
        self._cache: LRUCache[OutputFormat, CompiledGrammar | InvalidRequestError] = LRUCache(max_compiled)
        self._cache_lock = threading.Lock()
        # One for each format that is being compiled: other formats do not wait.
        self._compile_locks: WeakValueDictionary[OutputFormat, threading.Lock] = WeakValueDictionary()

    def constraint(
        self, output_format: OutputFormat, budget: int, end_ids: Collection[int]
    ) -> GrammarConstraint:
        """The constraint of one answer.

        Args:
            output_format: What the answer must match.
            budget: Maximum number of tokens of the answer.
            end_ids: Tokens that end it, beside the base's own; allowed where the answer is complete.

        Raises:
            InvalidRequestError: The format cannot be enforced.
            RequestTooLongError: Its shortest answer has more tokens than the budget.
        """
        compiled = self.compile_within(output_format, budget)
        all_end_ids = {*end_ids, *self._checked_vocabulary()[0].eos_tokens}
        return GrammarConstraint(
            compiled, budget, [token for token in all_end_ids if token < self._vocab_size]
        )

    def compile_within(self, output_format: OutputFormat, budget: int) -> CompiledGrammar:
        """As `compile`, for answers of at most this many tokens.

        Raises:
            InvalidRequestError: The format cannot be enforced.
            RequestTooLongError: Its shortest answer has more tokens than the budget.
        """
        compiled = self.compile(output_format)
        needed = len(compiled.shortest_completion)
        if needed > budget:
            raise RequestTooLongError(
                f"The shortest answer that fits the {_NAMES[output_format.kind]} takes {needed} tokens, and the answer "
                f"may have {budget}.",
                hint="Raise max_tokens, or ask for less in one answer.",
            )
        return compiled

    def compile(self, output_format: OutputFormat) -> CompiledGrammar:
        """The compiled grammar of an output format, from the cache where it has it.

        Raises:
            InvalidRequestError: The format cannot be enforced, or takes more than `MAX_SECONDS`.
        """
        compiled = self._cached(output_format)
        if compiled is None:
            with self._compile_lock(output_format):
                compiled = self._cached(output_format)  # another thread may have compiled it meanwhile
                if compiled is None:
                    compiled = self._compile_and_cache(output_format, MAX_SECONDS)
        return compiled

    def is_compiled(self, output_format: OutputFormat) -> bool:
        """Whether `compile` takes no time.

        Raises:
            InvalidRequestError: The format is known as one that cannot be enforced.
        """
        return self._cached(output_format) is not None

    def try_compile(self, output_format: OutputFormat, max_seconds: float) -> bool:
        """As `compile`, but returns False if it takes more time than this, or another thread is at it."""
        lock = self._compile_lock(output_format)
        if not lock.acquire(blocking=False):
            return False
        try:
            if not self.is_compiled(output_format):
                self._compile_and_cache(output_format, max_seconds)
        except _TimeUpError:
            return False
        finally:
            lock.release()
        return True

    def _compile_lock(self, output_format: OutputFormat) -> threading.Lock:
        with self._cache_lock:
            return self._compile_locks.setdefault(output_format, threading.Lock())

    def _cached(self, output_format: OutputFormat) -> CompiledGrammar | None:
        with self._cache_lock:
            found = self._cache.get(output_format)
        if isinstance(found, InvalidRequestError):
            # A new one, with a traceback of its own.
            raise InvalidRequestError(found.message, hint=found.hint)
        return found

    def _compile_and_cache(self, output_format: OutputFormat, max_seconds: float) -> CompiledGrammar:
        result: CompiledGrammar | InvalidRequestError
        try:
            result = self._compile(output_format, max_seconds)
        except InvalidRequestError as error:
            if isinstance(error, _TimeUpError) and max_seconds < MAX_SECONDS:
                raise
            result = error
        with self._cache_lock:
            self._cache[output_format] = result
        if isinstance(result, InvalidRequestError):
            raise result
        return result

    def _compile(self, output_format: OutputFormat, max_seconds: float) -> CompiledGrammar:
        ll_tokenizer, minimal_tokenizer = self._checked_vocabulary()
        name = _NAMES[output_format.kind]
        try:
            grammar = _to_llguidance(output_format)
            start = call_with_deep_stack(
                lambda: LLMatcher(ll_tokenizer, grammar, log_level=0, limits=PARSER_LIMITS)
            )
        except BaseException as error:
            if is_interrupt(error) or isinstance(error, AdapterHubError):
                raise
            raise InvalidRequestError(f"The {name} cannot be enforced: {error}.") from error
        if start.is_error():
            part = unenforceable_part(output_format.text) if output_format.kind == "schema" else None
            raise InvalidRequestError(f"The {name} cannot be enforced: {part or matcher_error(start)}.")
        search = CompletionSearch(minimal_tokenizer, ll_tokenizer.eos_token)
        shortest = search.find(start, _MAX_STATES, max_seconds)
        if shortest is NoCompletion.TIME_UP:
            raise _TimeUpError(
                f"The {name} cannot be enforced: {shortest.value}, more than {max_seconds:g} s.",
                hint="Ask for less in one answer.",
            )
        if isinstance(shortest, NoCompletion) and search.error:
            raise InvalidRequestError(
                f"The {name} cannot be enforced: {shortest.value}, and llguidance gave up: {search.error}.",
                hint="Some answer must be finite. If one is, ask for less at once: fewer optional properties or "
                "alternatives.",
            )
        if isinstance(shortest, NoCompletion):
            raise InvalidRequestError(
                f"The {name} cannot be enforced: {shortest.value}.",
                hint="Some answer must be finite, not very long, and in characters that the base's tokenizer knows.",
            )
        return CompiledGrammar(grammar, start, search, shortest)

    def _checked_vocabulary(self) -> tuple[LLTokenizer, MinimalTokenizer]:
        if isinstance(self._vocabulary, str):
            raise InvalidRequestError(
                f"The base's tokenizer cannot be used for structured output: {self._vocabulary}.",
                hint="Use a base with a tokenizer.json that llguidance can read.",
            )
        return self._vocabulary


def _convert_vocabulary(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, end_ids: list[int]
) -> tuple[LLTokenizer, MinimalTokenizer] | str:
    """The vocabulary for llguidance, or why it cannot be used; only requests with an output format raise that."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return "it is not a fast one"
    try:
        converted = from_tokenizer(
            tokenizer, n_vocab=max(vocab_size, len(tokenizer)), eos_token=end_ids or None
        )
    except ValueError as error:
        return str(error)
    return converted, MinimalTokenizer(converted, vocab_size)


def _to_llguidance(output_format: OutputFormat) -> str:
    """The output format as a grammar of llguidance."""
    if output_format.kind == "schema":
        check_schema_numbers(output_format.text)
        return schema_grammar(output_format.text)
    if output_format.kind == "grammar":
        check_grammar_numbers(output_format.text)
        limited = _LIMITED_RULE.search(output_format.text)
        if limited:
            raise InvalidRequestError(
                f"The grammar cannot be enforced: a rule has {limited[1]}=, and no ending can be planned for it.",
                hint="Give max_tokens to the request, or write the limit into the rule's pattern.",
            )
        return LLMatcher.grammar_from_lark(output_format.text)
    if output_format.kind == "regex":
        return LLMatcher.grammar_from_regex(output_format.text)
    return LLMatcher.grammar_from_regex("|".join(map(_escape, json.loads(output_format.text))))


def _escape(text: str) -> str:
    """A regular expression for exactly this text."""
    return "".join(char if char.isalnum() else rf"\x{{{ord(char):x}}}" for char in text)
