"""From a request to its sequences, each of which is one completion of a server; from its tokens to text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adapterhub.engine.decoding.detokenizer import IncrementalDetokenizer
from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.interface import FinishReason, LoraRequest, Request, TokenOutput, max_completion_tokens
from adapterhub.engine.meter import SequenceTimes
from adapterhub.engine.scheduling.output_queue import OutputQueue
from adapterhub.engine.scheduling.sequence_builder import EndTokens, check_fields
from adapterhub.errors import GenerationError
from adapterhub.vllm.base import ServedBase
from adapterhub.vllm.body import completion_body, seed_of
from adapterhub.vllm.chunks import ServedToken
from adapterhub.vllm.upstream_headers import upstream_headers

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from adapterhub.engine.decoding.grammar_constraint import CompiledGrammar


class FormatFollower:
    """Follows an answer through the grammar that the server was told to enforce.

    Args:
        start: llguidance's state before the first token.
        end_token_ids: Tokens that end a complete answer.

    Attributes:
        ended: Whether an end token ended the answer.
        is_complete: Whether the answer is complete and accepts no further token.
    """

    def __init__(self, start: LLMatcher, end_token_ids: frozenset[int]) -> None:
        self._matcher, self._end_token_ids = start.deep_copy(), end_token_ids
        self.ended = self.is_complete = False

    def accept(self, token_id: int) -> None:
        """Takes the next token.

        Raises:
            GenerationError: The grammar does not allow it.
        """
        if token_id in self._end_token_ids and self._matcher.is_accepting():
            self.ended = self.is_complete = True
            return
        self._matcher.consume_token(token_id)
        if self._matcher.is_error():
            raise GenerationError(
                "The server's answer leaves its output format.",
                hint='Start vLLM with --structured-outputs-config \'{"backend": "guidance"}\'.',
            )
        self.is_complete = self._matcher.is_stopped()


@dataclass(eq=False)
class ServedSequence:
    """One of the `n` completions of a request. The caller's thread makes it; then the engine's loop uses it.

    Attributes:
        request: What was requested.
        body: What a server is sent, but for `model`.
        max_tokens: Maximum number of tokens of the completion.
        end_token_ids: Tokens that end it.
        detokenizer: Turns its tokens into text.
        follower: Follows it through the output format; None for free text.
        output: Where its tokens go.
        index: Which of the request's completions it is.
        headers: What the server is sent besides; those of the caller's context.
        output_token_ids: The completion so far.
        times: When it was queued, started and so on.
    """

    request: Request
    body: Mapping[str, Any]
    max_tokens: int
    end_token_ids: frozenset[int]
    detokenizer: IncrementalDetokenizer
    follower: FormatFollower | None
    output: OutputQueue
    index: int
    headers: Mapping[str, str] = field(default_factory=upstream_headers.get)
    output_token_ids: list[int] = field(default_factory=list)
    times: SequenceTimes = field(default_factory=SequenceTimes)

    @property
    def adapter(self) -> LoraRequest | None:
        """The adapter; None for the base without one."""
        return self.request.adapter

    @property
    def prompt_token_ids(self) -> Sequence[int]:
        """Token ids of the prompt."""
        return self.request.prompt

    def take(self, token: ServedToken) -> TokenOutput:
        """What the next token adds; as the in-process engine's sequences do it.

        Raises:
            GenerationError: The output format does not allow it.
        """
        self.output_token_ids.append(token.token_id)
        self.times.token()
        ended = self._ends(token.token_id)
        text = self.detokenizer.flush() if ended else self.detokenizer.push(token.token_id)
        reason: FinishReason | None = "stop" if ended or self.detokenizer.stopped else None
        if reason is None and self._is_complete(token):
            text += self.detokenizer.flush()
            reason = "stop" if self._has_stopped(token) else "length"
        timings = self.times.timings() if reason else None
        return TokenOutput(
            text,
            token.token_id,
            token.logprob,
            reason,
            self.index,
            timings,
            prompt_logprobs=token.prompt_logprobs,
        )

    def _ends(self, token_id: int) -> bool:
        if self.follower is None:
            return token_id in self.end_token_ids
        self.follower.accept(token_id)
        return self.follower.ended

    def _is_complete(self, token: ServedToken) -> bool:
        is_complete = self.follower is not None and self.follower.is_complete
        return is_complete or token.is_last or len(self.output_token_ids) >= self.max_tokens

    def _has_stopped(self, token: ServedToken) -> bool:
        is_complete = self.follower is not None and self.follower.is_complete
        return is_complete or token.stopped or self.detokenizer.stopped


class ServedSequenceBuilder:
    """Checks requests and builds their sequences. Any thread may call its methods.

    Args:
        base: The base.
        context_length: Maximum number of tokens of a prompt and its completion.
    """

    def __init__(self, base: ServedBase, context_length: int) -> None:
        self._base, self._context_length = base, context_length
        self._ends = EndTokens(base.tokenizer, base.end_token_ids)
        self.compiler = GrammarCompiler(base.tokenizer, base.vocabulary_size, base.end_token_ids)

    def build(
        self, request: Request, num_sequences: int, wake: Callable[[], None], *, stream: bool
    ) -> list[ServedSequence]:
        """Checks a request and builds its sequences.

        Args:
            request: The request.
            num_sequences: How many of its completions to generate.
            wake: As for `OutputQueue`.
            stream: Whether to call it for each token.

        Raises:
            InvalidRequestError: The prompt is empty, a token id is not in the vocabulary, the output format cannot be
                enforced, or vLLM cannot do what is asked.
            RequestTooLongError: It does not fit the context, or the shortest text of the output format does not fit
                `max_tokens`.
        """
        sampling, max_tokens = request.sampling, max_completion_tokens(request, self._context_length)
        check_fields(request, self._base.vocabulary_size)
        end_token_ids = self._ends.of(sampling)
        grammar = self._grammar(request, max_tokens)
        body = completion_body(
            request,
            max_tokens=max_tokens,
            end_token_ids=end_token_ids,
            grammar=grammar.text if grammar else None,
        )
        return [
            ServedSequence(
                request=request,
                body=body | seed_of(sampling, index),
                max_tokens=max_tokens,
                end_token_ids=end_token_ids,
                detokenizer=IncrementalDetokenizer(
                    self._base.tokenizer,
                    sampling.stop,
                    skip_special_tokens=grammar is None,
                    min_tokens=sampling.min_tokens,
                ),
                follower=FormatFollower(grammar.start, end_token_ids) if grammar else None,
                output=OutputQueue(wake, every_token=stream),
                index=index,
            )
            for index in range(num_sequences)
        ]

    def _grammar(self, request: Request, max_tokens: int) -> CompiledGrammar | None:
        if request.output_format is None:
            return None
        return self.compiler.compile_within(request.output_format, max_tokens)
