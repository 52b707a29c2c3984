"""The KV cache of the running sequences: one slot holds one sequence from its first token to its last.

The maximum length of a sequence is known when it starts, so its slot has room for all of it, rounded up to a power of
two. Slots of one capacity form a pool and the used ones come first, so one attention call reads all of them in place:
a step gathers and copies nothing. When a sequence ends, the last slot of its pool moves into the gap. That is one copy
for each sequence, and not one for each token.

Memory: the pools together, used slots or not, never take more than `max_units`, and a sequence that needs more never
fits. A resize replaces a pool tensor by tensor, the keys or the values of one layer, so the old and the new one exist
together for a moment: the peak is above the bound by the largest of them.

Not thread-safe: the thread that steps allocates and frees. Any thread may read `num_slots`, `allocated_tokens`,
`bytes` and `usage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from adapterhub.engine.kv.shape import KVShape
from adapterhub.errors import EngineError

MIN_SLOT_TOKENS = 64


@dataclass(eq=False)
class KVSlot:
    """The keys, values and states of one sequence.

    Attributes:
        pool: The pool that the slot belongs to.
        index: Its index in the pool; it changes when another sequence ends, and is -1 once it is free.
        length: Number of tokens in it.
        state_length: Number of tokens in its states.
    """

    pool: KVSlotPool
    index: int
    length: int = 0
    state_length: int = 0

    @property
    def is_used(self) -> bool:
        """Whether it has not been freed."""
        return self.index >= 0

    def read(self, start: int, stop: int) -> list[torch.Tensor]:
        """Copies of the keys and values of some tokens.

        Returns:
            One tensor for each of `KVSlotPool.alike`, shape (tensors, heads, tokens, width).
        """
        tensors = self.pool.tensors
        return [
            torch.stack([tensors[i][self.index, :, start:stop] for i in alike]) for alike in self.pool.alike
        ]

    def write(self, start: int, tokens: Sequence[torch.Tensor]) -> None:
        """Writes what `read` returned from position `start` on; the slot ends after it."""
        self.length = start + tokens[0].shape[2]
        for alike, stacked in zip(self.pool.alike, tokens, strict=True):
            for i, part in zip(alike, stacked.unbind(), strict=True):
                self.pool.tensors[i][self.index, :, start : self.length] = part


class KVSlotPool:
    """Slots of one capacity, the used ones first.

    Args:
        shape: The shape of one token's keys and values.
        capacity: Maximum number of tokens in a slot.

    Attributes:
        shape: The shape of one token's keys and values.
        slots: The used slots, by index.
        tensors: The keys of each layer, shape (slots, heads, capacity, width), then the values.
        alike: Indices of the tensors of each shape; most models have one.
        version: Another object whenever tensors may have moved.
        states: Each of `KVShape.states` of all slots, shape (slots, *state).
    """

    def __init__(self, shape: KVShape, capacity: int) -> None:
        self.capacity = capacity
        self.slots: list[KVSlot] = []
        self.shape = shape
        self._num_slots = 0
        # Heads and width of each tensor.
        self._sizes = [(layer.num_kv_heads, layer.key_width) for layer in shape.layers]
        self._sizes += [(layer.num_kv_heads, layer.value_width) for layer in shape.layers]
        self._slot_bytes = (
            np.array([h * w for h, w in self._sizes], np.int64) * capacity * shape.dtype.itemsize
        )
        self.tensors = [self._zeros(index, 0) for index in range(len(self._sizes))]
        alike: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(self._sizes):
            alike.setdefault(size, []).append(index)
        self.alike = list(alike.values())
        self.version = object()
        self.states = [self._empty_state(index, 0) for index in range(len(shape.states))]

    @property
    def allocated_tokens(self) -> int:
        """Tokens whose keys and values the allocated slots have room for, used or not."""
        # An average, rounded up: after a resize that ran out of memory the layers may differ.
        return -(-sum(tensor.numel() for tensor in self.tensors) // (self.shape.numel_per_token or 1))

    @property
    def bytes(self) -> int:
        """Bytes of the allocated slots; see `KVShape.states_bytes`."""
        return sum(tensor.nbytes for tensor in (*self.tensors, *self.states, *self.states))

    @property
    def num_slots(self) -> int:
        """Number of slots, used or not."""
        return self._num_slots

    @property
    def is_full(self) -> bool:
        """Whether every slot is used."""
        return len(self.slots) == self._num_slots

    def keys_and_values(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of a layer, shape (slots, heads, capacity, width) each."""
        return self.tensors[layer], self.tensors[len(self.shape.layers) + layer]

    def addresses(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """Where some slots begin in each of `tensors`, shape (tensors, slots); they change with the next `resize`.

        Raises:
            EngineError: One of them is not in use.
        """
        if not all(0 <= index < len(self.slots) for index in indices):
            raise EngineError("A KV slot has been freed.")
        starts = np.array([tensor.data_ptr() for tensor in self.tensors], np.int64)
        addresses: npt.NDArray[np.int64] = starts[:, None] + np.outer(self._slot_bytes, indices)
        return addresses

    def resize(self, num_slots: int) -> None:
        """Changes the number of slots, which must not be below those in use.

        If memory runs out half-way, the used slots are as they were and the pool can be resized again.
        """
        used, self.version = len(self.slots), object()
        self._num_slots = min(self._num_slots, num_slots)
        for index, old in enumerate(self.tensors):
            if old.shape[0] != num_slots:
                new = self._zeros(index, num_slots)
                new[:used] = old[:used]
                self.tensors[index] = new
        for index, old in enumerate(self.states):
            if old.shape[0] != num_slots:
                new = self._empty_state(index, num_slots)
                new[:used] = old[:used]
                self.states[index] = new
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
            for tensor in self.tensors:
                tensor[slot.index, :, : last.length] = tensor[last.index, :, : last.length]
            for state in self.states:
                state[slot.index] = state[last.index]
            self.slots[slot.index], last.index = last, slot.index
        slot.index = -1
        if zero:
            # Attention multiplies masked values by zero, and NaN times zero is NaN. This clears the slot that is now
            # unused, and what the freed sequence left behind the one that was moved.
            for tensor in self.tensors:
                tensor[len(self.slots)] = 0
                if last is not slot:
                    tensor[last.index, :, last.length :] = 0

    def clear(self) -> None:
        """Frees all slots and their memory; the pool is of no use afterwards."""
        for slot in self.slots:
            slot.index = -1
        for one in (self.slots, self.tensors, self.states):
            one.clear()

    def _empty_state(self, index: int, num_slots: int) -> torch.Tensor:
        # A sequence's first step does not read it.
        state = self.shape.states[index]
        return torch.empty(num_slots, *state.shape, dtype=state.dtype, device=self.shape.device)

    def _zeros(self, index: int, num_slots: int) -> torch.Tensor:
        # Not `torch.empty`: see `free` about NaN.
        heads, width = self._sizes[index]
        return torch.zeros(
            num_slots, heads, self.capacity, width, dtype=self.shape.dtype, device=self.shape.device
        )


class KVCache:
    """The KV cache of all running sequences.

    Args:
        shape: The shape of one token's keys and values.
        max_units: Maximum memory of all slots together, in `KVShape.unit_bytes`. Of attention alone it is a number of
            tokens.

    Attributes:
        max_tokens: Maximum number of tokens of a sequence that has all of it.
    """

    def __init__(self, shape: KVShape, max_units: int) -> None:
        self.shape = shape
        self._max_units = max_units
        self._state_units = shape.units_per_slot
        self.max_tokens = max(0, max_units - self._state_units)
        self._pools: dict[int, KVSlotPool] = {}

    # Other threads read these four, so they iterate over a copy of the pools.

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
        return sum(pool.bytes for pool in list(self._pools.values()))

    @property
    def usage(self) -> float:
        """The share of its memory that the slots in use have, 0 to 1."""
        pools = list(self._pools.values())
        units = sum(len(pool.slots) * (pool.capacity + self._state_units) for pool in pools)
        return min(1.0, units / self._max_units) if self._max_units else 0.0

    def can_ever_fit(self, num_tokens: int) -> bool:
        """Whether a sequence of this many tokens, its prompt included, fits the empty cache."""
        return self._capacity(num_tokens) + self._state_units <= self._max_units

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
        """Frees all slots and their memory, also where a slot is still referred to."""
        for pool in self._pools.values():
            pool.clear()
        self._pools.clear()

    def _capacity(self, num_tokens: int) -> int:
        if not self.shape.layers:
            return 0  # one pool for all: states alone
        power = 1 << (max(num_tokens, MIN_SLOT_TOKENS) - 1).bit_length()
        # The largest slot need not be a power of two: a sequence that fits the cache exactly gets all of it.
        return min(power, max(num_tokens, self.max_tokens))

    def _grow(self, pool: KVSlotPool) -> bool:
        """Adds at least one slot, and doubles the pool if there is room."""
        used, per_slot = len(pool.slots), pool.capacity + self._state_units
        if self._allocated_units + per_slot > self._max_units:
            self._shrink()
        room = (self._max_units - self._allocated_units) // per_slot
        if room < 1:
            return False
        pool.resize(used + min(max(used, 1), room))
        return True

    @property
    def _allocated_units(self) -> int:
        return -(-self.bytes // self.shape.unit_bytes)

    def _shrink(self) -> None:
        """Releases the memory of unused slots."""
        for pool in self._pools.values():
            pool.resize(len(pool.slots))
