"""One sequence: a request's prompt, the completion so far, and what it occupies while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from adapterhub.engine.decoding.detokenizer import IncrementalDetokenizer
from adapterhub.engine.decoding.grammar_constraint import GrammarConstraint
from adapterhub.engine.decoding.prompt_scorer import PromptScorer
from adapterhub.engine.decoding.sampler import Logits, Sampler
from adapterhub.engine.interface import FinishReason, LoraRequest, Request, TokenLogprob, TokenOutput
from adapterhub.engine.meter import SequenceTimes
from adapterhub.engine.runner import SequenceSlot
from adapterhub.engine.scheduling.output_queue import OutputQueue
from adapterhub.errors import EngineError


@dataclass(eq=False)
class SequenceState:
    """One of the `n` completions of a request.

    The caller's thread makes it; from then on only the thread that steps uses it, but for `output`.

    Attributes:
        request: What was requested.
        max_tokens: Maximum number of tokens of the completion.
        end_token_ids: Tokens that end it.
        sampler: Samples its tokens.
        detokenizer: Turns them into text.
        constraint: Enforces the output format; None for free text.
        output: Where its tokens go.
        index: Which of the request's completions it is.
        first: The first sequence of the request, if this is a later one: it waits for that one's prefill, to find the
            prompt in the prefix cache.
        scorer: Has the log-probabilities of the prompt, which the request's first sequence gives it; None if they were
            not requested.
        output_token_ids: The completion so far.
        finish_reason: Why the completion ended; None while it has not.
        times: When it was queued, started and so on.
        num_cached_tokens: Tokens of the prompt that were found in the prefix cache.
    """

    request: Request
    max_tokens: int
    end_token_ids: frozenset[int]
    sampler: Sampler
    detokenizer: IncrementalDetokenizer
    constraint: GrammarConstraint | None
    output: OutputQueue
    index: int = 0
    first: SequenceState | None = None
    scorer: PromptScorer | None = None
    output_token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    times: SequenceTimes = field(default_factory=SequenceTimes)
    num_cached_tokens: int = 0
    _kv_slot: SequenceSlot | None = None
    _lora_slot: int | None = None

    @property
    def prompt_token_ids(self) -> Sequence[int]:
        """Token ids of the prompt."""
        return self.request.prompt

    @property
    def adapter(self) -> LoraRequest | None:
        """The adapter; None for the base without one."""
        return self.request.adapter

    @property
    def digest(self) -> str:
        """What keys and values depend on apart from the tokens: the adapter's digest, empty without one."""
        return self.request.adapter.digest if self.request.adapter else ""

    @property
    def priority(self) -> int:
        """Higher starts first."""
        return self.request.priority

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of prompt and completion."""
        return len(self.request.prompt) + self.max_tokens

    # While it runs

    def start(self, kv_slot: SequenceSlot, lora_slot: int | None) -> None:
        """Gives it a KV slot, which has what was found in the prefix cache, and the LoRA slot of its adapter."""
        self._kv_slot, self._lora_slot = kv_slot, lora_slot
        self.num_cached_tokens = kv_slot.length

    @property
    def kv_slot(self) -> SequenceSlot:
        """Its keys and values.

        Raises:
            EngineError: It has not started.
        """
        if self._kv_slot is None:
            raise EngineError("The sequence has not started.")
        return self._kv_slot

    @property
    def lora_slot(self) -> int | None:
        """The LoRA slot of its adapter; None for the base."""
        return self._lora_slot

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose keys and values are in its KV slot."""
        return self._kv_slot.length if self._kv_slot else 0

    @property
    def prefilling(self) -> bool:
        """Whether a part of its prompt has not been computed yet."""
        return self.num_computed_tokens < len(self.request.prompt)

    @property
    def scores_prompt(self) -> bool:
        """Whether the logits of its whole prompt are needed."""
        return self.scorer is not None and self.first is None

    @property
    def takes_argmax(self) -> bool:
        """Whether its next token is the one with the highest logit, whatever the completion is so far."""
        return self.constraint is None and self.sampler.takes_argmax

    @property
    def is_at_last_token(self) -> bool:
        """Whether no token may come after the next one."""
        return len(self.output_token_ids) + 1 >= self.max_tokens

    def is_consistent(self, unsampled: int = 0) -> bool:
        """Whether, between two steps, exactly its last token has not been computed.

        Args:
            unsampled: Tokens that a queued step computes beyond that.
        """
        sampled, prompt_length = len(self.output_token_ids) + unsampled, len(self.request.prompt)
        scored = self.scorer.num_scored if self.scorer and self.scores_prompt else None
        return (
            self.prefilling != bool(sampled)
            and (not sampled or self.num_computed_tokens == prompt_length + sampled - 1)
            and scored in (None, min(self.num_computed_tokens + 1, prompt_length))
        )

    def next_token_ids(self, limit: int) -> Sequence[int]:
        """The tokens to compute in the next step: at most `limit` of the prompt, or the last one sampled."""
        if not self.prefilling:
            return self.output_token_ids[-1:]
        done = self.num_computed_tokens
        return self.request.prompt[done : done + limit]

    def sample(self, logits: Logits) -> TokenOutput:
        """Samples the next token, and sets `finish_reason` if the completion ends with it."""
        token_id, logprob = self._sample(logits)
        self.output_token_ids.append(token_id)
        self.sampler.accept(token_id)
        self.times.token()
        ended = self.constraint.ended if self.constraint else token_id in self.end_token_ids
        text = self.detokenizer.flush() if ended else self.detokenizer.push(token_id)
        if ended or self.detokenizer.stopped:
            self.finish_reason = "stop"
        elif self._is_complete:
            text += self.detokenizer.flush()
            self.finish_reason = "stop" if self.detokenizer.stopped or self.constraint else "length"
        is_first = len(self.output_token_ids) == 1
        of_prompt = self.scorer.logprobs if self.scorer and is_first else None
        if not self.finish_reason:
            return TokenOutput(text, token_id, logprob, None, self.index, prompt_logprobs=of_prompt)
        timings, cached = self.times.timings(), self.num_cached_tokens
        return TokenOutput(
            text, token_id, logprob, self.finish_reason, self.index, timings, cached, of_prompt
        )

    @property
    def _is_complete(self) -> bool:
        """Whether no further token may come: `max_tokens` is reached, or the output format is complete."""
        return self.constraint.finished if self.constraint else len(self.output_token_ids) >= self.max_tokens

    def _sample(self, logits: Logits) -> tuple[int, TokenLogprob | None]:
        if self.constraint is None:
            return self.sampler.draw(logits)
        return self.constraint.choose(partial(self.sampler.draw, logits), len(logits.values))
