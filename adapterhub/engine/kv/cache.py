"""The KV cache of the running sequences: one slot holds one sequence from its first token to its last.

The maximum length of a sequence is known when it starts, so its slot has room for all of it, rounded up to a power of
two. Slots of one capacity form a pool and the used ones come first, so one attention call reads all of them in place:
a step gathers and copies nothing. When a sequence ends, the last slot of its pool moves into the gap. That is one copy
for each sequence, and not one for each token.

Memory: the pools together, used slots or not, never hold more than `max_tokens`, and a sequence of more tokens never
fits. A resize replaces a pool layer by layer, so one layer's old and new tensors exist together for a moment: the peak
is `max_tokens * (1 + 1 / num_layers)`.

Not thread-safe: the thread that steps allocates and frees. Any thread may read `num_slots`, `allocated_tokens` and
`bytes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from adapterhub.errors import EngineError

MIN_SLOT_TOKENS = 64


@dataclass(frozen=True)
class KVShape:
    """The shape of one token's keys and values.

    Attributes:
        num_layers: Attention layers of the model.
        num_kv_heads: Key and value heads of each layer.
        head_dim: Width of each head.
        dtype: The dtype that they are stored in.
        device: The device that they are stored on.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype, device: torch.device) -> KVShape:
        """Takes the shape from a transformers configuration.

        Raises:
            EngineError: The model has no attention.
        """
        num_heads = getattr(config, "num_attention_heads", None)
        if not num_heads:
            raise EngineError(
                f"A model of type {config.model_type!r} cannot be served: it has no attention with a KV cache.",
                hint="Hybrid and recurrent models are not supported.",
            )
        return cls(
            num_layers=config.num_hidden_layers,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
            dtype=dtype,
            device=device,
        )

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


@dataclass(eq=False)
class KVSlot:
    """The keys and values of one sequence.

    Attributes:
        pool: The pool that the slot belongs to.
        index: Its index in the pool; it changes when another sequence ends.
        length: Number of tokens in it.
    """

    pool: KVSlotPool
    index: int
    length: int = 0

    def read(self, start: int, stop: int) -> torch.Tensor:
        """A copy of the keys and values of some tokens, shape (2, layers, heads, tokens, head_dim)."""
        return torch.stack([layer[:, self.index, :, start:stop] for layer in self.pool.layers], dim=1)

    def write(self, start: int, tokens: torch.Tensor) -> None:
        """Writes what `read` returned from position `start` on; the slot ends after it."""
        self.length = start + tokens.shape[3]
        for layer, layer_tokens in zip(self.pool.layers, tokens.unbind(1), strict=True):
            layer[:, self.index, :, start : self.length] = layer_tokens


class KVSlotPool:
    """Slots of one capacity, the used ones first.

    Args:
        shape: The shape of one token's keys and values.
        capacity: Maximum number of tokens in a slot.

    Attributes:
        slots: The used slots, by index.
        layers: One tensor for each layer, shape (2, slots, heads, capacity, head_dim): keys, then values.
        keys: Views of the keys of each layer, shape (slots, heads, capacity, head_dim).
        values: The same of the values.
    """

    def __init__(self, shape: KVShape, capacity: int) -> None:
        self.capacity = capacity
        self.slots: list[KVSlot] = []
        self._shape = shape
        self._num_slots = 0
        self.layers = [self._zeros(0) for _ in range(shape.num_layers)]
        self.keys, self.values = ([layer[part] for layer in self.layers] for part in (0, 1))

    @property
    def allocated_tokens(self) -> int:
        """Tokens that the allocated slots have room for, used or not."""
        # An average, rounded up: after a resize that ran out of memory the layers may differ.
        slots = sum(layer.shape[1] for layer in self.layers)
        return -(-slots * self.capacity // len(self.layers))

    @property
    def is_full(self) -> bool:
        """Whether every slot is used."""
        return len(self.slots) == self._num_slots

    def resize(self, num_slots: int) -> None:
        """Changes the number of slots, which must not be below those in use.

        If memory runs out half-way, the used slots are as they were and the pool can be resized again.
        """
        used = len(self.slots)
        self._num_slots = min(self._num_slots, num_slots)
        for index, old in enumerate(self.layers):
            if old.shape[1] != num_slots:
                new = self._zeros(num_slots)
                new[:, :used] = old[:, :used]
                self.layers[index] = new
                self.keys[index], self.values[index] = new.unbind(0)
        self._num_slots = num_slots

    def allocate(self) -> KVSlot:
        """Takes an unused slot; the pool must not be full."""
        slot = KVSlot(self, len(self.slots))
        self.slots.append(slot)
        return slot

    def free(self, slot: KVSlot, *, zero: bool) -> None:
        """Frees a slot.

        Args:
            slot: The slot.
            zero: Overwrite it with zeros; needed if it may hold NaN or infinity.
        """
        last = self.slots.pop()
        if last is not slot:
            for layer in self.layers:
                layer[:, slot.index, :, : last.length] = layer[:, last.index, :, : last.length]
            self.slots[slot.index], last.index = last, slot.index
        if zero:
            # Attention multiplies masked values by zero, and NaN times zero is NaN. This clears the slot that is now
            # unused, and what the freed sequence left behind the one that was moved.
            for layer in self.layers:
                layer[:, len(self.slots)] = 0
                if last is not slot:
                    layer[:, last.index, :, last.length :] = 0

    def _zeros(self, num_slots: int) -> torch.Tensor:
        # Not `torch.empty`: see `free` about NaN.
        shape = self._shape
        return torch.zeros(
            2, num_slots, shape.num_kv_heads, self.capacity, shape.head_dim,
            dtype=shape.dtype, device=shape.device,
        )  # fmt: skip


class KVCache:
    """The KV cache of all running sequences.

    Args:
        shape: The shape of one token's keys and values.
        max_tokens: Maximum number of tokens that all slots together have room for.
    """

    def __init__(self, shape: KVShape, max_tokens: int) -> None:
        self.shape = shape
        self.max_tokens = max_tokens
        self._pools: dict[int, KVSlotPool] = {}

    # Other threads read these three, so they iterate over a copy of the pools.

    @property
    def num_slots(self) -> int:
        """Number of slots in use."""
        return sum(len(pool.slots) for pool in list(self._pools.values()))

    @property
    def allocated_tokens(self) -> int:
        """Tokens that the allocated slots have room for, used or not."""
        return sum(pool.allocated_tokens for pool in list(self._pools.values()))

    @property
    def bytes(self) -> int:
        """Bytes of all allocated slots."""
        return self.allocated_tokens * self.shape.bytes_per_token

    def can_ever_fit(self, num_tokens: int) -> bool:
        """Whether a sequence of this many tokens, its prompt included, fits the empty cache."""
        return self._capacity(num_tokens) <= self.max_tokens

    def allocate(self, num_tokens: int) -> KVSlot | None:
        """A slot for a sequence of at most this many tokens, its prompt included; None if there is no room now."""
        capacity = self._capacity(num_tokens)
        pool = self._pools.setdefault(capacity, KVSlotPool(self.shape, capacity))
        if pool.is_full and not self._grow(pool):
            return None
        return pool.allocate()

    def free(self, slot: KVSlot, *, zero: bool = False) -> None:
        """Frees a slot; see `KVSlotPool.free`."""
        slot.pool.free(slot, zero=zero)

    def clear(self) -> None:
        """Frees all slots and their memory."""
        self._pools.clear()

    def _capacity(self, num_tokens: int) -> int:
        power = 1 << (max(num_tokens, MIN_SLOT_TOKENS) - 1).bit_length()
        # The largest slot need not be a power of two: a sequence that fits the cache exactly gets all of it.
        return min(power, max(num_tokens, self.max_tokens)) if power > self.max_tokens else power

    def _grow(self, pool: KVSlotPool) -> bool:
        """Adds at least one slot, and doubles the pool if there is room."""
        used = len(pool.slots)
        if self.allocated_tokens + pool.capacity > self.max_tokens:
            self._shrink()
        room = (self.max_tokens - self.allocated_tokens) // pool.capacity
        if room < 1:
            return False
        pool.resize(used + min(max(used, 1), room))
        return True

    def _shrink(self) -> None:
        """Releases the memory of unused slots."""
        for pool in self._pools.values():
            pool.resize(len(pool.slots))
