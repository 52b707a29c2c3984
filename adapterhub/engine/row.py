"""One answer in the making: what it was asked, what it has so far, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from adapterhub.engine.interface import FinishReason, Piece, Request, answer_budget
from adapterhub.engine.sampler import Sampler
from adapterhub.engine.text import TextAssembler
from adapterhub.models import Base


@dataclass(eq=False)
class Row:
    """One answer in the making.

    Attributes:
        prompt: Token ids of the prompt.
        budget: Most tokens of the answer.
        end_ids: Tokens that end it.
        sampler: Draws its tokens.
        text: Turns them into text.
        tokens: Those drawn so far.
        finished: Whether the answer has ended.
    """

    prompt: Sequence[int]
    budget: int
    end_ids: frozenset[int]
    sampler: Sampler
    text: TextAssembler
    tokens: list[int] = field(default_factory=list)
    finished: bool = False

    def accept(self, logits: torch.Tensor) -> Piece:
        """Draws the next token from logits of shape (vocabulary,) and says what it adds."""
        token, logprob = self.sampler.draw(logits, [*self.prompt, *self.tokens])
        self.tokens.append(token)
        ended = token in self.end_ids
        text = self.text.flush() if ended else self.text.push(token)
        reason: FinishReason | None = "stop" if ended or self.text.stopped else None
        if reason is None and len(self.tokens) >= self.budget:
            text += self.text.flush()
            reason = "stop" if self.text.stopped else "length"
        self.finished = reason is not None
        return Piece(text, token, logprob, reason)


class RowMaker:
    """Makes rows for a base, whose end tokens and special tokens it knows.

    Args:
        base: From `load_base`.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._end_ids = _end_ids(base)
        added = base.tokenizer.added_tokens_decoder.items()
        self._special = {token.content: number for number, token in added if token.special}

    def row(self, request: Request, number: int) -> Row:
        """The `number`-th of the request's `sampling.n` answers."""
        sampling = request.sampling
        own_ends = frozenset() if sampling.ignore_eos else self._end_ids
        # Special tokens among the stop strings, such as `<|im_end|>`, never show in the text.
        special = {self._special[stop] for stop in sampling.stop if stop in self._special}
        return Row(
            prompt=request.prompt,
            budget=answer_budget(request, self._base.context_length),
            end_ids=own_ends | set(sampling.stop_token_ids) | special,
            sampler=Sampler(sampling, number, self._base.device),
            text=TextAssembler(self._base.tokenizer, sampling.stop),
        )


def _end_ids(base: Base) -> frozenset[int]:
    configured = base.model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*ids, base.tokenizer.eos_token_id] if token is not None)
