"""Attention that computes each token alike, whatever tokens are computed beside it and however a prompt is cut.

Each query is a sequence of one token. Our own kernel for those sums over its keys in an order of its own. With torch's
operations it has as many keys as its own position asks for: rounded up to whole blocks of keys, of which it does not
see those behind it. So the shapes of its products, and the order of their sums, depend on its position alone. It is for
batch invariance; a prompt costs more than in `packed_step`, since no two of its tokens share the reading of a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import scaled_dot_product_attention

from adapterhub.engine.kv.cache import MIN_SLOT_TOKENS, KVSlot, KVSlotPool
from adapterhub.engine.kv.decode_kernel import DecodeKernel, KernelDecode
from adapterhub.engine.kv.masks import AttentionMask
from adapterhub.engine.kv.packed_call import AttentionGroup, PackedCall, QuerySpan, attention_by_scores
from adapterhub.engine.kv.packed_step import AttentionMetadata
from adapterhub.engine.kv.probing import AttentionLayer

_KEY_BLOCK = MIN_SLOT_TOKENS


@dataclass(frozen=True)
class Query:
    """One token of a step.

    Attributes:
        kv_slot: The keys and values of its sequence.
        position: Its position in the sequence.
    """

    kv_slot: KVSlot
    position: int


class TokenAttention(AttentionMetadata):
    """The attention of one forward pass, token by token.

    Args:
        queries: The tokens.
        padding: Number of tokens before them, which belong to no sequence; they attend to nothing and get zeros.
        device: The device of the tokens.
        dtype: The dtype of keys and values.
        layers: The calls of attention in a forward pass, from the probe.
        kernel: What computes sequences that decode; torch's operations if not given.
    """

    def __init__(
        self,
        queries: Sequence[Query],
        padding: int,
        device: torch.device,
        dtype: torch.dtype,
        layers: Sequence[AttentionLayer],
        kernel: DecodeKernel | None = None,
    ) -> None:
        super().__init__([], device, dtype, layers)
        self.groups: list[AttentionGroup] = [_Tokens(queries, padding, device, dtype, kernel)]


class _Tokens:
    """All tokens of a step: their keys and values are stored first, so that those of one prompt see each other."""

    def __init__(
        self,
        queries: Sequence[Query],
        padding: int,
        device: torch.device,
        dtype: torch.dtype,
        kernel: DecodeKernel | None,
    ) -> None:
        self._padding = padding
        by_pool: dict[KVSlotPool, list[int]] = {}
        for index, query in enumerate(queries):
            by_pool.setdefault(query.kv_slot.pool, []).append(index)
        self._stores = [
            _Store(
                pool, [queries[index] for index in indices], [padding + index for index in indices], device
            )
            for pool, indices in by_pool.items()
        ]
        self._reads: list[AttentionGroup] = (
            [_kernel_read(kernel, queries, padding)]
            if kernel
            else self._torch_reads(queries, padding, device, dtype)
        )

    def _torch_reads(
        self, queries: Sequence[Query], padding: int, device: torch.device, dtype: torch.dtype
    ) -> list[AttentionGroup]:
        return [
            _Read(
                [queries[index] for index in indices], [padding + index for index in indices], device, dtype
            )
            for indices in _alike(queries)
        ]

    def attend(self, call: PackedCall) -> None:
        """Writes the attention of all tokens into `call.out`."""
        call.out[: self._padding] = 0
        if not call.layer.shares_kv:
            for store in self._stores:
                store.write(call)
        stored = replace(call, layer=replace(call.layer, shares_kv=True))
        for read in self._reads:
            read.attend(stored)


def _kernel_read(kernel: DecodeKernel, queries: Sequence[Query], padding: int) -> KernelDecode:
    """Each token as a sequence that decodes it, up to its own position."""
    spans: dict[KVSlotPool, list[QuerySpan]] = {}
    for token, query in enumerate(queries, padding):
        pool = query.kv_slot.pool
        slot = KVSlot(pool, query.kv_slot.index, length=query.position)
        spans.setdefault(pool, []).append(QuerySpan(slot, token, 1))
    return KernelDecode(kernel, spans)


class _Store:
    """Where the keys and values of the tokens of one pool go."""

    def __init__(
        self, pool: KVSlotPool, queries: Sequence[Query], tokens: Sequence[int], device: torch.device
    ) -> None:
        self._pool = pool
        self._slots = torch.tensor([query.kv_slot.index for query in queries], device=device)
        self._positions = torch.tensor([query.position for query in queries], device=device)
        self._tokens = torch.tensor(tokens, device=device)

    def write(self, call: PackedCall) -> None:
        keys, values = self._pool.keys_and_values(call.layer.kv_layer)
        keys[self._slots, :, self._positions] = call.k.index_select(0, self._tokens)
        values[self._slots, :, self._positions] = call.v.index_select(0, self._tokens)


class _Read:
    """Tokens over as many keys each: of one sequence, or of neighbouring slots a token each."""

    def __init__(
        self, queries: Sequence[Query], tokens: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._pool = queries[0].kv_slot.pool
        self._slots = slice(queries[0].kv_slot.index, queries[-1].kv_slot.index + 1)
        self._width = _width(queries[0])
        self._tokens = torch.tensor(tokens, device=device)
        self._positions = torch.tensor([query.position for query in queries], device=device)
        self._device, self._dtype = device, dtype
        self._masks: dict[AttentionMask, torch.Tensor] = {}

    def attend(self, call: PackedCall) -> None:
        keys, values = (
            tensor[self._slots, :, : self._width].expand(len(self._tokens), -1, -1, -1)
            for tensor in self._pool.keys_and_values(call.layer.kv_layer)
        )
        # Query heads that share a key head are rows of one product, as in `packed_step`.
        queries = call.q.index_select(0, self._tokens)
        queries = queries.reshape(len(queries), keys.shape[1], -1, queries.shape[-1])
        mask = self._mask(call.layer.mask)
        # On a CPU torch's own attention in float32 rounds by which thread computes it, and products of several
        # queries by their number.
        if call.has_plain_scores and (queries.is_cuda or queries.dtype != torch.float32):
            attended = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=call.scale)
        else:
            pieces = (torch.split(tensor, 1) for tensor in (queries, keys, values, mask))
            attended = torch.cat(
                [attention_by_scores(q, k, v, m, call) for q, k, v, m in zip(*pieces, strict=True)]
            )
        call.out.index_copy_(0, self._tokens, attended.reshape(len(attended), -1, values.shape[-1]))

    def _mask(self, mask: AttentionMask) -> torch.Tensor:
        """The mask to add to scores, shape (tokens, 1, 1, width)."""
        if mask not in self._masks:
            keys = torch.arange(self._width, device=self._device)
            self._masks[mask] = mask.additive(self._positions[:, None], keys, self._dtype)[:, None, None]
        return self._masks[mask]


def _width(query: Query) -> int:
    """How many keys a token reads, which depends on its position; slots that end within a block are all as long."""
    blocks = query.position // _KEY_BLOCK + 1
    return min(blocks * _KEY_BLOCK, query.kv_slot.pool.capacity)


def _alike(queries: Sequence[Query]) -> list[list[int]]:
    """Indices of tokens that are computed in one call; see `_Read`."""
    groups: list[list[int]] = []
    order = sorted(
        range(len(queries)),
        key=lambda index: (id(queries[index].kv_slot.pool), _width(queries[index]), _place(queries[index])),
    )
    for index in order:
        group = groups[-1] if groups else None
        if group and _continues([queries[one] for one in group], queries[index]):
            group.append(index)
        else:
            groups.append([index])
    return groups


def _place(query: Query) -> tuple[int, int]:
    return query.kv_slot.index, query.position


def _continues(group: Sequence[Query], query: Query) -> bool:
    first, last = group[0], group[-1]
    if query.kv_slot.pool is not last.kv_slot.pool or _width(query) != _width(last):
        return False
    if query.kv_slot is last.kv_slot:  # another token of the same prompt
        return first.kv_slot is last.kv_slot
    is_next = query.kv_slot.index == last.kv_slot.index + 1
    return is_next and (len(group) == 1 or first.kv_slot is not last.kv_slot)
