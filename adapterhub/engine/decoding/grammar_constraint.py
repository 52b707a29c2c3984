"""Answers that keep to a form: which tokens may come next, and an end within the budget.

llguidance knows which tokens a grammar allows. What it does not know is the budget: a model may spend all of it on
the first field. So each answer carries a closing, a sequence of tokens that would complete it now, and one rule
holds from the first token to the last: the closing fits what is left of the budget. A token after which no closing
is found that fits is refused, and the model chooses again; the closing's own next token is never refused. An answer
is thus valid and complete within its budget whatever the model computes.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from adapterhub.engine.decoding.completion_search import CompletionSearch
from adapterhub.engine.decoding.token_spelling import TokenSpelling
from adapterhub.engine.output_format import OutputFormat
from adapterhub.errors import GenerationError, InvalidRequestError, RequestTooLongError

_KEPT = 256  # compiled forms
_LOOKS_TO_COMPILE, _LOOKS_ON_THE_WAY = 50_000, 2_000  # states: at most a second or so, and some milliseconds
_LONGEST_REASON = 200  # characters
_TRIES = 8  # tokens that the model may propose at one place before it gets the closing's
_KINDS = {
    "schema": "schema",
    "regex": "regular expression",
    "grammar": "grammar",
    "choices": "list of choices",
}

Extra = TypeVar("Extra")


@dataclass(frozen=True)
class CompiledGrammar:
    """A form, ready for any number of answers.

    Attributes:
        start: llguidance's state before the first token; copied for each answer.
        finder: Finds closings.
        shortest: The closing of an empty answer: the shortest answer that was found.
    """

    start: LLMatcher
    finder: CompletionSearch
    shortest: list[int]


class GrammarCompiler:
    """Compiles forms for a tokenizer, each once while it is in use. Thread-safe.

    llguidance reads the vocabulary here and not at the first request. It takes a second or two for a large one and
    holds Python's lock for as long, which would stop an event loop whichever thread asked.

    Args:
        tokenizer: The base's; a fast one.
        vocabulary_size: Width of the base's logits.
        end_ids: The base's end tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary_size: int, end_ids: Collection[int]
    ) -> None:
        self._size = vocabulary_size
        self._vocabulary = _vocabulary(tokenizer, vocabulary_size, sorted(end_ids))
        self._compiled: OrderedDict[OutputFormat, CompiledGrammar] = (
            OrderedDict()
        )  # least recently used first
        self._lock = threading.Lock()  # for a moment only: an event loop asks for what was compiled beside it
        self._compiling = threading.Lock()

    def constraint(
        self, output_format: OutputFormat, budget: int, end_ids: Collection[int]
    ) -> GrammarConstraint:
        """What keeps one answer in its form.

        Args:
            output_format: The form.
            budget: Most tokens of the answer.
            end_ids: Tokens that end it, beside the base's own; allowed where it may end.

        Raises:
            InvalidRequestError: The form cannot be enforced.
            RequestTooLongError: Its shortest answer has more tokens than the budget.
        """
        compiled = self.compile(output_format)
        needed = len(compiled.shortest)
        if needed > budget:
            raise RequestTooLongError(
                f"The shortest answer that fits the {_KINDS[output_format.kind]} takes {needed} tokens, and the answer "
                f"may have {budget}.",
                hint="Raise max_tokens, or ask for less in one answer.",
            )
        ends = {*end_ids, *self._llguidance()[0].eos_tokens}
        return GrammarConstraint(compiled, budget, [token for token in ends if token < self._size])

    def compile(self, output_format: OutputFormat) -> CompiledGrammar:
        """The compiled form.

        Raises:
            InvalidRequestError: It cannot be enforced.
        """
        found = self._kept(output_format)
        if found is None:
            with self._compiling:
                found = self._kept(output_format)
                if found is None:
                    found = self._keep(output_format, self._compile(output_format))
        return found

    def _kept(self, output_format: OutputFormat) -> CompiledGrammar | None:
        with self._lock:
            if output_format in self._compiled:
                self._compiled.move_to_end(output_format)
            return self._compiled.get(output_format)

    def _keep(self, output_format: OutputFormat, compiled: CompiledGrammar) -> CompiledGrammar:
        with self._lock:
            self._compiled[output_format] = compiled
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return compiled

    def _compile(self, output_format: OutputFormat) -> CompiledGrammar:
        tokenizer, spelling = self._llguidance()
        kind = _KINDS[output_format.kind]
        grammar = _grammar(output_format)
        start = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if start.is_error():
            raise InvalidRequestError(f"The {kind} cannot be enforced: {_reason(start)}.")
        finder = CompletionSearch(spelling, tokenizer.eos_token)
        shortest = finder.find(start, _LOOKS_TO_COMPILE)
        if shortest is None:
            raise InvalidRequestError(
                f"The {kind} cannot be enforced: no complete answer was found.",
                hint="Some answer must be finite, not very long, and in characters that the base's tokenizer knows.",
            )
        return CompiledGrammar(start, finder, shortest)

    def _llguidance(self) -> tuple[LLTokenizer, TokenSpelling]:
        if isinstance(self._vocabulary, str):
            raise InvalidRequestError(
                f"The base's tokenizer cannot be used for structured output: {self._vocabulary}.",
                hint="Use a base with a tokenizer.json that llguidance can read.",
            )
        return self._vocabulary


class GrammarConstraint:
    """Keeps one answer in its form and within its budget; see this module's text.

    Args:
        compiled: The form.
        budget: Most tokens of the answer, enough for its shortest.
        end_ids: Tokens that end it where the form is complete; at least one.

    Attributes:
        ended: Whether an end token was taken.
        finished: Whether the answer is complete and nothing more will be taken.
    """

    def __init__(self, compiled: CompiledGrammar, budget: int, end_ids: Collection[int]) -> None:
        self._matcher = compiled.start.deep_copy()
        self._finder = compiled.finder
        self._closing = compiled.shortest
        self._left = budget
        self._ends = sorted(end_ids)
        self._may_end = False
        self.ended = self.finished = False

    def choose(self, draw: Callable[[torch.Tensor], tuple[int, Extra]], size: int) -> tuple[int, Extra]:
        """Has a token drawn until one fits, and takes it.

        Args:
            draw: Draws a token among those that a mask allows, a bool tensor of shape (size,) on the CPU.
            size: Width of the logits.

        Returns:
            What `draw` returned for the token that was taken.

        Raises:
            GenerationError: The grammar grew too complex on the way.
        """
        allowed = self._allowed(size)
        for _ in range(_TRIES):
            drawn = draw(allowed)
            if self._take(drawn[0]):
                return drawn
            allowed[drawn[0]] = False
            if not allowed.any():
                break
        # Where the text is forced, llguidance's mask has one spelling of it, and the closing may have a shorter one.
        allowed[:] = False
        allowed[self._closing[:1] or self._ends] = True
        drawn = draw(allowed)
        self._take(drawn[0])
        return drawn

    def _allowed(self, size: int) -> torch.Tensor:
        self._may_end = self._matcher.is_accepting()
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = torch.from_numpy(np.unpackbits(packed, count=size, bitorder="little")).bool()
        if self._may_end:
            allowed[self._ends] = True
        return allowed

    def _take(self, token: int) -> bool:
        """Takes a token that the grammar allows, unless no closing would fit after it."""
        if self._may_end and token in self._ends:
            self.ended = self.finished = True
            return True
        self._matcher.consume_token(token)
        self._check()
        closing = self._closing[1:] if self._closing[:1] == [token] else self._closing_within(self._left - 1)
        if closing is None:
            self._matcher.rollback(1)
            return False
        self._closing, self._left = closing, self._left - 1
        self.finished = self._left == 0 or self._matcher.is_stopped()
        return True

    def _closing_within(self, limit: int) -> list[int] | None:
        """Tokens, at most so many, that complete the answer as it is now."""
        if self._matcher.is_accepting():
            return []
        for closing in (
            self._closing[1:],
            self._closing,
        ):  # most tokens leave it as it was, or are a part of it
            if closing and len(closing) <= limit and self._finder.completes(self._matcher, closing):
                return closing
        found = self._finder.find(self._matcher, _LOOKS_ON_THE_WAY)
        return found if found is not None and len(found) <= limit else None

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationError(
                f"The answer's grammar could not be followed further: {_reason(self._matcher)}.",
                hint="Use a simpler one.",
            )


def _vocabulary(
    tokenizer: PreTrainedTokenizerBase, size: int, end_ids: list[int]
) -> tuple[LLTokenizer, TokenSpelling] | str:
    """llguidance's reading of a vocabulary; or why there is none, which only those need to know who ask for a form."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return "it is not a fast one"
    try:
        read = from_tokenizer(tokenizer, n_vocab=max(size, len(tokenizer)), eos_token=end_ids or None)
    except ValueError as error:
        return str(error)
    return read, TokenSpelling(read, size)


def _grammar(output_format: OutputFormat) -> str:
    """The form in llguidance's own notation."""
    if output_format.kind == "schema":
        # One blank after a comma or colon is what most models have learned to write; more could go on for ever.
        return LLMatcher.grammar_from_json_schema(
            output_format.text,
            overrides={
                "whitespace_flexible": False,
                "item_separator": ", ?",
                "key_separator": ": ?",
                "lenient": False,
            },
        )
    if output_format.kind == "grammar":
        return LLMatcher.grammar_from_lark(output_format.text)
    if output_format.kind == "regex":
        return LLMatcher.grammar_from_regex(output_format.text)
    return LLMatcher.grammar_from_regex("|".join(map(_literally, json.loads(output_format.text))))


def _literally(text: str) -> str:
    """A regular expression for exactly this text."""
    return "".join(char if char.isalnum() else rf"\x{{{ord(char):x}}}" for char in text)


def _reason(matcher: LLMatcher) -> str:
    """The first sentence of llguidance's error, which goes on with positions and excerpts."""
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
    reason = " ".join(line for line in lines[:1] + [line for line in lines[1:] if line.startswith("error:")])
    return reason[:_LONGEST_REASON].rstrip(".:")
