"""One call of attention over the packed tokens of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from adapterhub.engine.kv.cache import KVSlot
from adapterhub.engine.kv.probing import AttentionLayer


@dataclass(frozen=True)
class QuerySpan:
    """The tokens of one sequence in a step.

    Attributes:
        kv_slot: Its keys and values; the length is that before the step.
        start: Index of its first token among the tokens of the step.
        count: Number of tokens.
    """

    kv_slot: KVSlot
    start: int
    count: int


@dataclass(slots=True)
class PackedCall:
    """The inputs of one layer, packed tensors of shape (tokens, heads, width), and where its output goes."""

    layer: AttentionLayer
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    out: torch.Tensor
    scale: float
    softcap: float | None
    sinks: torch.Tensor | None

    @property
    def has_plain_scores(self) -> bool:
        """Whether PyTorch's own attention computes it."""
        return self.softcap is None and self.sinks is None


class AttentionGroup(Protocol):
    """Tokens of a step whose attention is computed together."""

    def attend(self, call: PackedCall) -> None:
        """Writes the attention of its tokens into `call.out`."""
        ...


def attention_by_scores(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, call: PackedCall
) -> torch.Tensor:
    """Attention whose scores are capped or which has sinks; PyTorch's own has neither.

    Args:
        queries: Shape (batch, kv_heads, rows, key_width); the rows are the tokens of each head that shares a key head.
        keys: Shape (batch, kv_heads, length, key_width).
        values: Shape (batch, kv_heads, length, value_width).
        mask: What is added to the scores, of a shape that broadcasts to (batch, 1, rows, length).
        call: The rest.

    Returns:
        Shape (batch, kv_heads, rows, value_width).
    """
    scores = queries @ keys.transpose(-1, -2) * call.scale
    if call.softcap is not None:
        scores = scores.div_(call.softcap).tanh_().mul_(call.softcap)
    scores = scores.float().add_(mask)
    if call.sinks is None:
        return scores.softmax(-1).to(values.dtype) @ values
    kv_heads, rows = queries.shape[1:3]
    sinks = (
        call.sinks.float().repeat_interleave(kv_heads * rows // len(call.sinks)).view(1, kv_heads, rows, 1)
    )
    scores = torch.cat([scores, sinks.expand(len(scores), -1, -1, -1)], dim=-1)
    return scores.softmax(-1)[..., :-1].to(values.dtype) @ values
