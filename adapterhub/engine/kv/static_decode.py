"""A step in which each sequence decodes one token, whose tensors keep their place and shape from step to step.

A captured graph repeats operations on the memory that they had. So what differs between steps is in tensors that are
filled before: `StaticInputs`. Shapes are rounded up to those of a `StepShape`: tokens to a number of a few, of which
the last sequence takes those that are left over, and lengths to a power of two, behind which a mask hides the rest. A
token that is repeated writes the same keys and values to the same place, so nothing that is not meant is ever stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn.functional import scaled_dot_product_attention

from adapterhub.engine.kv.attention import PackedStep
from adapterhub.engine.kv.cache import MIN_SLOT_TOKENS, KVSlotPool
from adapterhub.engine.kv.masks import AttentionMask
from adapterhub.engine.kv.packed_call import PackedCall, attention_by_scores
from adapterhub.engine.kv.probing import AttentionLayer
from adapterhub.engine.runner import ScheduledSequence

_TILE = 3  # (slot, start, stop)


@dataclass(frozen=True)
class PoolShape:
    """How a step reads one pool.

    Attributes:
        capacity: That of its slots.
        slots: How many of them are read, the first ones.
        width: How many tokens of each.
    """

    capacity: int
    slots: int
    width: int


@dataclass(frozen=True)
class StepShape:
    """The shapes of a step's tensors.

    Attributes:
        tokens: Number of tokens.
        pools: The pools that sequences are in, by capacity.
        has_adapters: Whether any token has an adapter.
    """

    tokens: int
    pools: tuple[PoolShape, ...]
    has_adapters: bool

    @classmethod
    def of(cls, sequences: Sequence[ScheduledSequence], pools: Sequence[KVSlotPool]) -> Self:
        """The shape of a step, rounded up.

        Args:
            sequences: Of one token each.
            pools: The pools of their slots.
        """
        shapes = []
        for pool in pools:
            slots = [one.kv_slot for one in sequences if one.kv_slot.pool is pool]
            used, longest = 1 + max(slot.index for slot in slots), 1 + max(slot.length for slot in slots)
            width = max(MIN_SLOT_TOKENS, 1 << (longest - 1).bit_length())
            shapes.append(
                PoolShape(pool.capacity, min(bucket(used), pool.num_slots), min(width, pool.capacity))
            )
        has_adapters = any(one.lora_slot is not None for one in sequences)
        return cls(bucket(len(sequences)), tuple(shapes), has_adapters)


def pools_of(sequences: Sequence[ScheduledSequence]) -> list[KVSlotPool]:
    """The pools that sequences are in, by capacity."""
    return sorted({one.kv_slot.pool for one in sequences}, key=lambda pool: pool.capacity)


def bucket(count: int) -> int:
    """The next number for which a graph is captured: a power of two up to 8, then multiples of 8; as in vLLM."""
    return 1 << (count - 1).bit_length() if count <= 8 else -(-count // 8) * 8


@dataclass(frozen=True)
class DeviceTokens:
    """The tokens of a step's sequences, which the host need not know.

    Attributes:
        token_ids: Token ids on the device.
        rows: The index of each sequence's token among them.
    """

    token_ids: torch.Tensor
    rows: Sequence[int]


@dataclass(frozen=True)
class _PoolInputs:
    """What differs between steps of one pool; each has as many elements as slots are read.

    Attributes:
        tokens: The tokens whose keys and values are written, repeated to fill it up.
        slots: Their slots.
        positions: Their positions.
        token_of_slot: The token of each slot, any token where it has none.
        lengths: The position of that token; 0 where there is none.
    """

    tokens: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor
    token_of_slot: torch.Tensor
    lengths: torch.Tensor


class StaticInputs:
    """The tensors of a step's inputs, which are parts of one, so that one copy fills them.

    Args:
        shape: The shape of the step.
        device: Their device. Filled from pinned memory, unless it is the CPU.

    Attributes:
        token_ids: Shape (tokens,).
        positions: The position of each token, shape (tokens,).
        tiles: What `LoraMapping.tiles` returns, with empty tiles at the end, shape (tokens, 3).
        everything: The index of each token, shape (tokens,).
        attended: Where the attention of each token is among the slots of all pools, shape (tokens,).
        pools: The inputs of each pool.
    """

    def __init__(self, shape: StepShape, device: torch.device) -> None:
        self._shape = shape
        sizes = [shape.tokens] * 4 + [_TILE * shape.tokens]
        for pool in shape.pools:
            sizes += [pool.slots] * 5
        is_cpu = device.type == "cpu"
        self._on_device = torch.zeros(sum(sizes), dtype=torch.long, device=device)
        self._on_host = self._on_device if is_cpu else torch.zeros(sum(sizes), dtype=torch.long).pin_memory()
        self._copied: Any = None if is_cpu else torch.cuda.Event()  # type: ignore[no-untyped-call]
        parts = torch.split(self._on_device, sizes)
        self.token_ids, self.positions, self.attended, self._rows, tiles, *others = parts
        self.tiles = tiles.view(-1, _TILE)
        self.everything = torch.arange(shape.tokens, device=device)
        self.pools = [_PoolInputs(*others[i : i + 5]) for i in range(0, len(others), 5)]

    def fill(
        self,
        sequences: Sequence[ScheduledSequence],
        pools: Sequence[KVSlotPool],
        tiles: Sequence[int],
        device_tokens: DeviceTokens | None = None,
    ) -> None:
        """Writes the inputs of a step that has the shape.

        Args:
            sequences: Sorted by their LoRA slots.
            pools: The pools of their slots, by capacity.
            tiles: (slot, start, stop) of each tile, flat, as many as there may be.
            device_tokens: The token of each sequence, where the host does not know them.
        """
        tokens, first_slot = self._shape.tokens, dict.fromkeys(pools, 0)
        by_pool: list[int] = []
        offset = 0
        for pool, shape in zip(pools, self._shape.pools, strict=True):
            first_slot[pool] = offset
            by_pool += _pool_inputs(sequences, pool, shape.slots)
            offset += shape.slots
        repeated = [*sequences, *[sequences[-1]] * (tokens - len(sequences))]
        values = [one.token_ids[0] for one in repeated]
        values += [one.kv_slot.length for one in repeated]
        values += [first_slot[one.kv_slot.pool] + one.kv_slot.index for one in repeated]
        rows = device_tokens.rows if device_tokens else [0]
        values += [*rows, *[rows[-1]] * (tokens - len(rows))]
        values += [*tiles, *[0] * (_TILE * tokens - len(tiles)), *by_pool]
        if self._copied is not None:
            self._copied.synchronize()  # the last copy has read the pinned memory
        self._on_host.copy_(torch.tensor(values))
        if self._copied is not None:
            self._on_device.copy_(self._on_host, non_blocking=True)
            self._copied.record()
        if device_tokens:
            self.token_ids.copy_(device_tokens.token_ids.index_select(0, self._rows))


def _pool_inputs(sequences: Sequence[ScheduledSequence], pool: KVSlotPool, slots: int) -> list[int]:
    """The values of `_PoolInputs`, one after the other."""
    rows = [(token, one.kv_slot) for token, one in enumerate(sequences) if one.kv_slot.pool is pool]
    token_of_slot, lengths = [rows[0][0]] * slots, [0] * slots
    for token, slot in rows:
        token_of_slot[slot.index], lengths[slot.index] = token, slot.length
    rows += [rows[-1]] * (slots - len(rows))
    return [
        *(token for token, _ in rows),
        *(slot.index for _, slot in rows),
        *(slot.length for _, slot in rows),
        *token_of_slot,
        *lengths,
    ]


class StaticDecode(PackedStep):
    """The attention of static inputs; made anew for each run.

    Args:
        inputs: The inputs.
        shape: Their shape.
        pools: The pools, by capacity.
        layers: The calls of attention in a forward pass, from the probe.
        dtype: The dtype of keys and values.
    """

    def __init__(
        self,
        inputs: StaticInputs,
        shape: StepShape,
        pools: Sequence[KVSlotPool],
        layers: Sequence[AttentionLayer],
        dtype: torch.dtype,
    ) -> None:
        self._attended = inputs.attended
        self._layers = iter(layers)
        self._pools = [
            _StaticPool(pool, one, width=of_pool.width, dtype=dtype)
            for pool, one, of_pool in zip(pools, inputs.pools, shape.pools, strict=True)
        ]

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
        packed = PackedCall(next(self._layers), q, k, v, q, scale, softcap, sinks)
        parts = [pool.attend(packed) for pool in self._pools]
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        return attended.index_select(0, self._attended)


class _StaticPool:
    """The sequences of one pool."""

    def __init__(self, pool: KVSlotPool, inputs: _PoolInputs, *, width: int, dtype: torch.dtype) -> None:
        self._pool, self._inputs, self._width, self._dtype = pool, inputs, width, dtype
        self._masks: dict[AttentionMask, torch.Tensor] = {}

    def attend(self, call: PackedCall) -> torch.Tensor:
        """The attention of all slots, shape (slots, heads, value_width)."""
        keys, values = self._pool.keys_and_values(call.layer.kv_layer)
        one, slots = self._inputs, len(self._inputs.slots)
        if not call.layer.shares_kv:
            keys[one.slots, :, one.positions] = call.k.index_select(0, one.tokens)
            values[one.slots, :, one.positions] = call.v.index_select(0, one.tokens)
        queries = call.q.index_select(0, one.token_of_slot)
        # Query heads that share a key head take the dimension of query tokens, as in any step that decodes.
        grouped = queries.reshape(slots, keys.shape[1], -1, keys.shape[-1])
        keys, values = keys[:slots, :, : self._width], values[:slots, :, : self._width]
        mask = self._mask(call.layer.mask.up_to(self._width))
        if call.has_plain_scores:
            attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=call.scale)
        else:
            attended = attention_by_scores(grouped, keys, values, mask, call)
        return attended.reshape(slots, -1, values.shape[-1])

    def _mask(self, mask: AttentionMask) -> torch.Tensor:
        """The mask to add to scores, shape (slots, 1, 1, width)."""
        if mask not in self._masks:
            keys = torch.arange(self._width, device=self._inputs.lengths.device)
            self._masks[mask] = mask.additive(self._inputs.lengths[:, None], keys, self._dtype)[:, None, None]
        return self._masks[mask]
