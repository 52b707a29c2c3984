"""Attention over the packed tokens of a step.

The tokens of a step are packed: ids of shape (1, tokens), sequence after sequence, most of them one token long (decode)
and some a chunk of a prompt (prefill). All other layers treat tokens alike, so only this module knows which sequence a
token belongs to. Sequences that decode are computed together: all in one call of our own kernel where there is one, and
with torch's operations in one call for each pool of KV slots. Prefill chunks are computed one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from adapterhub.engine.kv.attention import PackedStep
from adapterhub.engine.kv.cache import KVSlotPool
from adapterhub.engine.kv.decode_kernel import DecodeKernel, KernelDecode
from adapterhub.engine.kv.masks import CAUSAL, AttentionMask
from adapterhub.engine.kv.packed_call import AttentionGroup, PackedCall, QuerySpan, attention_by_scores
from adapterhub.engine.kv.probing import AttentionLayer

_MAX_SCORES = 1 << 25  # 128 MiB in float32


class AttentionMetadata(PackedStep):
    """Which sequence each token of a step belongs to, and where its keys and values are.

    Args:
        spans: The tokens of each sequence.
        device: The device of the tokens.
        dtype: The dtype of keys and values.
        layers: The calls of attention in a forward pass, from the probe.
        kernel: What computes sequences that decode; torch's operations if not given.
    """

    def __init__(
        self,
        spans: Sequence[QuerySpan],
        device: torch.device,
        dtype: torch.dtype,
        layers: Sequence[AttentionLayer],
        kernel: DecodeKernel | None = None,
    ) -> None:
        decoding: dict[KVSlotPool, list[QuerySpan]] = {}
        for span in spans:
            if span.count == 1:
                decoding.setdefault(span.kv_slot.pool, []).append(span)
        self.groups: list[AttentionGroup] = []
        if decoding and kernel:
            self.groups.append(KernelDecode(kernel, decoding))
        else:
            self.groups += [_DecodeBatch(pool, of_pool, device, dtype) for pool, of_pool in decoding.items()]
        self.groups += [_PrefillChunk(span, device, dtype) for span in spans if span.count > 1]
        self._layers = iter(layers)

    def attend_tokens(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        *,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes the next call of the forward pass; see `PackedStep.attend_tokens`."""
        out = q.new_empty((*q.shape[:2], v.shape[-1]))
        packed = PackedCall(next(self._layers), q, k, v, out, scale, softcap, sinks)
        for group in self.groups:
            group.attend(packed)
        return out


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
