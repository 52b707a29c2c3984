"""Attention over the packed tokens of a step.

The tokens of a step are packed: ids of shape (1, tokens), sequence after sequence, most of them one token long (decode)
and some a chunk of a prompt (prefill). All other layers treat tokens alike, so only this module knows which sequence a
token belongs to. Sequences that decode are computed together, one call for each pool of KV slots; prefill chunks are
computed one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from adapterhub.engine.kv.attention import AttentionCall
from adapterhub.engine.kv.cache import KVSlot, KVSlotPool
from adapterhub.engine.kv.masks import CAUSAL, AttentionMask
from adapterhub.engine.kv.probing import AttentionLayer

_MAX_SCORES = 1 << 25  # 128 MiB in float32


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


class AttentionGroup(Protocol):
    """Tokens of a step whose attention is computed together."""

    def attend(self, call: PackedCall) -> None:
        """Writes the attention of its tokens into `call.out`."""
        ...


class AttentionMetadata:
    """Which sequence each token of a step belongs to, and where its keys and values are.

    Args:
        spans: The tokens of each sequence.
        device: The device of the tokens.
        dtype: The dtype of keys and values.
        layers: The calls of attention in a forward pass, from the probe.
    """

    def __init__(
        self,
        spans: Sequence[QuerySpan],
        device: torch.device,
        dtype: torch.dtype,
        layers: Sequence[AttentionLayer],
    ) -> None:
        decoding: dict[KVSlotPool, list[QuerySpan]] = {}
        for span in spans:
            if span.count == 1:
                decoding.setdefault(span.kv_slot.pool, []).append(span)
        self.groups: list[AttentionGroup] = [
            _DecodeBatch(pool, of_pool, device, dtype) for pool, of_pool in decoding.items()
        ]
        self.groups += [_PrefillChunk(span, device, dtype) for span in spans if span.count > 1]
        self._layers = iter(layers)

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """Computes the next call of the forward pass; see `AttentionStep.attend`."""
        layer = next(self._layers)
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (call.query, call.key, call.value))
        out = q.new_empty((*q.shape[:2], v.shape[-1]))
        packed = PackedCall(layer, q, k, v, out, call.scale, call.softcap, call.sinks)
        for group in self.groups:
            group.attend(packed)
        return out[None]


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


class _DecodeBatch:
    """Sequences of one pool that compute one token each."""

    def __init__(
        self, pool: KVSlotPool, spans: Sequence[QuerySpan], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._pool, self._device, self._dtype = pool, device, dtype
        spans = sorted(spans, key=lambda span: span.kv_slot.index)
        self._num_slots = spans[-1].kv_slot.index + 1
        # Slots without a token in this step are computed along, as if empty, and their output is left out.
        self._lengths = [0] * self._num_slots
        for span in spans:
            self._lengths[span.kv_slot.index] = span.kv_slot.length
        self._width = max(self._lengths) + 1
        self._all_slots = len(spans) == self._num_slots
        self._slot_indices = torch.tensor([span.kv_slot.index for span in spans], device=device)
        self._positions = torch.tensor([span.kv_slot.length for span in spans], device=device)
        starts = [span.start for span in spans]
        # Most steps have one pool with its slots in order: then nothing has to be gathered or scattered.
        self._in_order = self._all_slots and starts == list(range(starts[0], starts[0] + len(starts)))
        self._token_range = slice(starts[0], starts[0] + len(starts))
        self._token_indices = torch.tensor(starts, device=device)
        token_of_slot = dict.fromkeys(range(self._num_slots), starts[0])
        token_of_slot.update((span.kv_slot.index, span.start) for span in spans)
        self._token_of_slot = torch.tensor(list(token_of_slot.values()), device=device)
        self._masks: dict[AttentionMask, torch.Tensor] = {}

    def attend(self, call: PackedCall) -> None:
        keys, values = self._pool.keys_and_values(call.layer.kv_layer)
        if not call.layer.shares_kv:
            keys[self._slot_indices, :, self._positions] = self._select(call.k, self._token_indices)
            values[self._slot_indices, :, self._positions] = self._select(call.v, self._token_indices)
        # Query heads that share a key head take the dimension of query tokens: with one token for each sequence, and
        # so one mask, the result is the same, and no key is repeated.
        queries = self._select(call.q, self._token_of_slot)
        grouped = queries.reshape(self._num_slots, keys.shape[1], -1, keys.shape[-1])
        keys, values = keys[: self._num_slots, :, : self._width], values[: self._num_slots, :, : self._width]
        mask = self._mask(call.layer.mask.up_to(self._width))
        if call.has_plain_scores:
            attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=call.scale)
        else:
            attended = attention_by_scores(grouped, keys, values, mask, call)
        attended = attended.reshape(self._num_slots, -1, values.shape[-1])
        if self._in_order:
            call.out[self._token_range] = attended
        else:
            if not self._all_slots:
                attended = attended.index_select(0, self._slot_indices)
            call.out.index_copy_(0, self._token_indices, attended)

    def _select(self, tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return tensor[self._token_range] if self._in_order else tensor.index_select(0, indices)

    def _mask(self, mask: AttentionMask) -> torch.Tensor:
        """The mask to add to scores, shape (slots, 1, 1, width)."""
        if mask not in self._masks:
            keys = torch.arange(self._width, device=self._device)
            queries = torch.tensor(self._lengths, device=self._device)[:, None]
            self._masks[mask] = mask.additive(queries, keys, self._dtype)[:, None, None]
        return self._masks[mask]


class _PrefillChunk:
    """Several tokens of the prompt of one sequence."""

    def __init__(self, span: QuerySpan, device: torch.device, dtype: torch.dtype) -> None:
        self._slot = span.kv_slot
        self._tokens = slice(span.start, span.start + span.count)
        self._past = span.kv_slot.length
        self._end = self._past + span.count
        self._device, self._dtype = device, dtype
        self._masks: dict[AttentionMask, torch.Tensor] = {}

    def attend(self, call: PackedCall) -> None:
        pool, index = self._slot.pool, self._slot.index
        keys, values = (tensor[index] for tensor in pool.keys_and_values(call.layer.kv_layer))
        if not call.layer.shares_kv:
            keys[:, self._past : self._end] = call.k[self._tokens].transpose(0, 1)
            values[:, self._past : self._end] = call.v[self._tokens].transpose(0, 1)
        queries = call.q[self._tokens].transpose(0, 1)[None]
        keys, values = keys[None, :, : self._end], values[None, :, : self._end]
        mask = call.layer.mask.up_to(self._end)
        if call.has_plain_scores:
            # Without earlier tokens or a window that matters, PyTorch's own causal mask is enough.
            is_causal = self._past == 0 and mask is CAUSAL
            attended = scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=None if is_causal else self._mask(mask),
                is_causal=is_causal,
                scale=call.scale,
                enable_gqa=queries.shape[1] != keys.shape[1],
            )
        else:
            attended = self._attend_by_scores(queries, keys, values, self._mask(mask), call)
        call.out[self._tokens] = attended[0].transpose(0, 1)

    def _attend_by_scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor,
        call: PackedCall,
    ) -> torch.Tensor:
        """Some tokens at a time: the scores of a long prompt would fill the memory."""
        heads, kv_heads, parts = queries.shape[1], keys.shape[1], []
        block = max(1, _MAX_SCORES // (heads * self._end))
        for rows, row_mask in zip(torch.split(queries, block, dim=2), torch.split(mask, block), strict=True):
            grouped = rows.reshape(1, kv_heads, -1, rows.shape[-1])
            attended = attention_by_scores(grouped, keys, values, row_mask.repeat(heads // kv_heads, 1), call)
            parts.append(attended.reshape(1, heads, -1, values.shape[-1]))
        return torch.cat(parts, dim=2)

    def _mask(self, mask: AttentionMask) -> torch.Tensor:
        """The mask to add to scores, shape (chunk, earlier tokens and chunk)."""
        if mask not in self._masks:
            positions = torch.arange(self._end, device=self._device)
            self._masks[mask] = mask.additive(positions[self._past :, None], positions, self._dtype)
        return self._masks[mask]


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
