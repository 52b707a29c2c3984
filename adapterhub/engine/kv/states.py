"""States of recurrent and convolution layers: of one size for each sequence, however long it is.

They lie in the sequence's slot beside keys and values. A step works on copies, and what it computed waits: it is
written into the slots when the next step begins, for the sequences that are as long as the step made them. So a step
that fails, or whose last token is taken back, leaves every state as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from adapterhub.engine.kv.cache import KVSlot, KVSlotPool
from adapterhub.errors import EngineError


class StateBatch:
    """The states of the sequences that are computed together in a step.

    Args:
        slots: Their slots, each once.
        counts: Number of tokens that each gets in the step.
        device: The device of the states.

    Raises:
        EngineError: A sequence was made shorter, by more than its last step.
    """

    def __init__(self, slots: Sequence[KVSlot], counts: Sequence[int], device: torch.device) -> None:
        self.slots = slots
        self._lengths = [slot.length + count for slot, count in zip(slots, counts, strict=True)]
        self._computed: dict[int, torch.Tensor] = {}
        self._device = device
        if any(slot.length not in (0, slot.state_length) for slot in slots):
            raise EngineError(
                "A recurrent state cannot go back to an earlier token.", hint="Send the request again."
            )
        self._rows = [(pool, *self._indices(pool, rows)) for pool, rows in _by_pool(slots).items()]

    @property
    def is_empty(self) -> bool:
        """Whether the sequences have no states yet."""
        return self.slots[0].length == 0

    def read(self, state: int) -> torch.Tensor:
        """A copy of one state of all sequences, shape (sequences, *state)."""
        if len(self._rows) == 1:
            pool, indices, _ = self._rows[0]
            return pool.states[state].index_select(0, indices)
        first = self._rows[0][0].states[state]
        gathered = first.new_empty(len(self.slots), *first.shape[1:])
        for pool, indices, rows in self._rows:
            gathered[rows] = pool.states[state].index_select(0, indices)
        return gathered

    def keep(self, state: int, computed: torch.Tensor) -> None:
        """Keeps what a step computed of one state until `commit`."""
        self._computed[state] = computed

    def commit(self) -> None:
        """Writes what the step computed into the slots of sequences that are as long as it made them."""
        kept = [
            row
            for row, (slot, length) in enumerate(zip(self.slots, self._lengths, strict=True))
            if slot.is_used and slot.length == length
        ]
        for pool, rows in _by_pool(self.slots, kept).items():
            indices, selected = self._indices(pool, rows)
            for state, computed in self._computed.items():
                if len(rows) < len(self.slots):
                    computed = computed.index_select(0, selected)
                pool.states[state].index_copy_(0, indices, computed.to(pool.states[state].dtype))
        for row in kept:
            self.slots[row].state_length = self._lengths[row]

    def _indices(self, pool: KVSlotPool, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The slots' indices in their pool, and their rows here."""
        return (
            torch.tensor([self.slots[row].index for row in rows], device=self._device),
            torch.tensor(rows, device=self._device),
        )


def _by_pool(slots: Sequence[KVSlot], rows: Iterable[int] | None = None) -> dict[KVSlotPool, list[int]]:
    pools: dict[KVSlotPool, list[int]] = {}
    for row in range(len(slots)) if rows is None else rows:
        pools.setdefault(slots[row].pool, []).append(row)
    return pools
