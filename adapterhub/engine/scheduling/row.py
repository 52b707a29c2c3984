"""One answer in the making: what it was asked, what it has so far, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from adapterhub.base.loading import Base
from adapterhub.engine.decoding.detokenizer import IncrementalDetokenizer
from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.decoding.grammar_constraint import GrammarConstraint
from adapterhub.engine.decoding.sampler import Logits, Sampler
from adapterhub.engine.interface import FinishReason, Request, TokenLogprob, TokenOutput, answer_budget
from adapterhub.engine.output_format import OutputFormat
from adapterhub.errors import InvalidRequestError


@dataclass(eq=False)
class Row:
    """One answer in the making.

    Attributes:
        prompt: Token ids of the prompt.
        budget: Most tokens of the answer.
        end_ids: Tokens that end it.
        sampler: Draws its tokens.
        text: LeaderFollower them into text.
        constraint: Keeps it in its form; None for free text.
        tokens: Those drawn so far.
        finished: Whether the answer has ended.
    """

    prompt: Sequence[int]
    budget: int
    end_ids: frozenset[int]
    sampler: Sampler
    text: IncrementalDetokenizer
    constraint: GrammarConstraint | None = None
    tokens: list[int] = field(default_factory=list)
    finished: bool = False

    def accept(self, logits: Logits) -> TokenOutput:
        """Draws the next token and says what it adds."""
        token, logprob = self._draw(logits)
        self.tokens.append(token)
        ended = self.constraint.ended if self.constraint else token in self.end_ids
        text = self.text.flush() if ended else self.text.push(token)
        reason: FinishReason | None = "stop" if ended or self.text.stopped else None
        if reason is None and self._is_full:
            text += self.text.flush()
            reason = "stop" if self.text.stopped or self.constraint else "length"
        self.finished = reason is not None
        return TokenOutput(text, token, logprob, reason)

    @property
    def _is_full(self) -> bool:
        """Whether nothing more may come: the budget is used up, or the form complete."""
        return self.constraint.finished if self.constraint else len(self.tokens) >= self.budget

    def _draw(self, logits: Logits) -> tuple[int, TokenLogprob | None]:
        history = [*self.prompt, *self.tokens]
        if self.constraint is None:
            return self.sampler.draw(logits, history)
        return self.constraint.choose(
            lambda allowed: self.sampler.draw(logits, history, allowed), len(logits.values)
        )


class SequenceBuilder:
    """Makes rows for a base, whose end tokens and special tokens it knows.

    Args:
        base: From `load_base`.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._end_ids = _end_ids(base)
        added = base.tokenizer.added_tokens_decoder.items()
        self._special = {token.content: number for number, token in added if token.special}
        width = base.model.config.get_text_config().vocab_size
        self._structures = GrammarCompiler(base.tokenizer, width, self._end_ids)

    def compile(self, output_format: OutputFormat) -> None:
        """Does beforehand what takes long about making the first row of a form; raises as `row`."""
        self._structures.compile(output_format)

    def row(self, request: Request, number: int) -> Row:
        """The `number`-th of the request's `sampling.n` answers.

        Raises:
            InvalidRequestError: The form that is asked for cannot be enforced, or not together with `ignore_eos`.
            RequestTooLongError: The budget is less than the form's shortest answer.
        """
        sampling, budget = request.sampling, answer_budget(request, self._base.context_length)
        own_ends = frozenset() if sampling.ignore_eos else self._end_ids
        # Special tokens among the stop strings, such as `<|im_end|>`, never show in the text.
        special = {self._special[stop] for stop in sampling.stop if stop in self._special}
        end_ids = own_ends | set(sampling.stop_token_ids) | special
        constraint = self._constraint(request, budget, end_ids)
        return Row(
            prompt=request.prompt,
            budget=budget,
            end_ids=end_ids,
            sampler=Sampler(sampling, number, self._base.device),
            # An answer in a form is whole or nothing: a stop string, most often the prompt style's, does not cut it.
            # Its special tokens are those that the form asks for, and part of the text.
            text=IncrementalDetokenizer(
                self._base.tokenizer,
                () if constraint else sampling.stop,
                skip_special_tokens=constraint is None,
            ),
            constraint=constraint,
        )

    def _constraint(self, request: Request, budget: int, end_ids: frozenset[int]) -> GrammarConstraint | None:
        if request.output_format is None:
            return None
        if request.sampling.ignore_eos:
            raise InvalidRequestError(
                "ignore_eos has no meaning for an answer in a form, which ends where the form does."
            )
        return self._structures.constraint(request.output_format, budget, end_ids)


def _end_ids(base: Base) -> frozenset[int]:
    configured = base.model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*ids, base.tokenizer.eos_token_id] if token is not None)
