"""Attention that computes each token alike, whatever tokens are computed beside it and however a prompt is cut.

Each query is a sequence of one token, over as many keys as its own position asks for: rounded up to whole blocks of
keys, of which it does not see those behind it. So the shapes of its products, and the order of their sums, depend on
its position alone. It is for batch invariance; a prompt costs more than in `packed_step`, since no two of its tokens
share the reading of a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from adapterhub.engine.kv.cache import MIN_SLOT_TOKENS, KVSlot, KVSlotPool
from adapterhub.engine.kv.masks import AttentionMask
from adapterhub.engine.kv.packed_call import AttentionGroup, PackedCall, attention_by_scores
from adapterhub.engine.kv.packed_step import AttentionMetadata
from adapterhub.engine.kv.probing import AttentionLayer

_KEY_BLOCK = MIN_SLOT_TOKENS
_MAX_QUERIES_BY_SCORES = 8
"""Without PyTorch's own attention, each query of a call has a copy of the keys."""


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
    """The attention of one forward pass, token by token; an `AttentionStep`.

    Args:
        queries: The tokens.
        padding: Number of tokens before them, which belong to no sequence; they attend to nothing and get zeros.
        device: The device of the tokens.
        dtype: The dtype of keys and values.
        layers: The calls of attention in a forward pass, from the probe.
    """

    def __init__(
        self,
        queries: Sequence[Query],
        padding: int,
        device: torch.device,
        dtype: torch.dtype,
        layers: Sequence[AttentionLayer],
    ) -> None:
        super().__init__([], device, dtype, layers)
        self.groups: list[AttentionGroup] = [_Tokens(queries, padding, device, dtype)]


class _Tokens:
    """All tokens of a step: their keys and values are stored first, so that those of one prompt see each other."""

    def __init__(
        self, queries: Sequence[Query], padding: int, device: torch.device, dtype: torch.dtype
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
        self._reads = [
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
        for read in self._reads:
            read.attend(call)


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
        if call.has_plain_scores:
            attended = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=call.scale)
        else:
            pieces = (torch.split(tensor, _MAX_QUERIES_BY_SCORES) for tensor in (queries, keys, values, mask))
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
