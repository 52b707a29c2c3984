"""Which adapter is in which LoRA slot of the model, and which one is evicted for another."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from adapterhub.errors import CapacityError


class LoraSlotTable:
    """The assignment of adapters to LoRA slots. It moves no weights: whoever acquires a slot loads it.

    Not thread-safe: the thread that steps calls its methods. Any thread may read `resident`, `ref_counts`,
    `pinned` and the counters.

    Args:
        num_slots: Number of slots in the model.
        max_bytes: Maximum memory of what the adapters in slots hold beside LoRA on linear layers.

    Attributes:
        hits: Sequences that found their adapter in a slot.
        loads: Adapters put into a slot.
        evictions: Adapters evicted from a slot.
    """

    def __init__(self, num_slots: int, max_bytes: float = math.inf) -> None:
        self._num_slots, self._max_bytes = num_slots, max_bytes
        self._bytes: dict[str, int] = {}  # by digest, of the adapters in slots
        self._free = list(reversed(range(num_slots)))
        self._slot_of: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._ref_counts: dict[str, int] = {}
        self._pinned: set[str] = set()
        self.hits = self.loads = self.evictions = 0

    @property
    def resident(self) -> tuple[str, ...]:
        """The digests of the adapters in slots, least recently used first."""
        return tuple(self._slot_of)

    @property
    def ref_counts(self) -> Mapping[str, int]:
        """Number of running sequences of each adapter that is in use."""
        return self._ref_counts

    @property
    def pinned(self) -> frozenset[str]:
        """The digests that are excluded from eviction, in a slot or not."""
        return frozenset(self._pinned)

    @property
    def has_free(self) -> bool:
        """Whether a slot holds no adapter."""
        return bool(self._free)

    def slot_of(self, digest: str) -> int | None:
        """The slot of an adapter; None if it is in none."""
        return self._slot_of.get(digest)

    def can_acquire(self, digest: str, size: int = 0) -> bool:
        """Whether an adapter is in a slot, or a slot and memory are free or can be freed for it.

        Args:
            digest: The adapter.
            size: What it holds in a slot beside LoRA on linear layers, in bytes.

        Raises:
            CapacityError: Pinned adapters hold so much that it can never be in a slot.
        """
        if digest in self._slot_of:
            return True
        pinned = self._bytes_of(self._pinned)
        if size and pinned + size > self._max_bytes:
            raise CapacityError(
                f"Pinned adapters hold {pinned:,} bytes of the LoRA slots beside LoRA on linear layers, and it needs "
                f"{size:,} of {self._max_bytes:,}.",
                hint="Raise max_slot_weights_mib, or unpin an adapter.",
            )
        busy = self._bytes_of({*self._pinned, *self._ref_counts})
        return (self.has_free or self._evictable() is not None) and (
            not size or busy + size <= self._max_bytes
        )

    def has_room(self, size: int) -> bool:
        """Whether an adapter of this size fits beside those in slots."""
        return not size or sum(self._bytes.values()) + size <= self._max_bytes

    def make_room(self, size: int) -> list[int]:
        """Evicts idle adapters that hold such memory until another one's fits, the least recently used one first.

        Args:
            size: As in `can_acquire`.

        Returns:
            Their slots, for whoever calls to clear.
        """
        slots = []
        for digest in [one for one in self._slot_of if self._bytes[one] and self._is_idle(one)]:
            if self.has_room(size):
                break
            slots.append(self._slot_of[digest])
            self.evictions += 1
            self.remove(digest)
        return slots

    def acquire(self, digest: str, size: int = 0) -> tuple[int, bool]:
        """Takes the slot of an adapter for one sequence.

        Args:
            digest: The adapter.
            size: As in `can_acquire`; call `make_room` first.

        Returns:
            The slot, and whether the adapter must be loaded into it.

        Raises:
            CapacityError: All slots are in use or pinned; see `can_acquire`.
        """
        if digest in self._slot_of:
            self.hits += 1
            self._slot_of.move_to_end(digest)
            self._ref_counts[digest] = self._ref_counts.get(digest, 0) + 1
            return self._slot_of[digest], False
        if not self._free:
            self._evict()
        self.loads += 1
        self._slot_of[digest] = slot = self._free.pop()
        self._bytes[digest] = size
        self._ref_counts[digest] = 1
        return slot, True

    def release(self, digest: str) -> None:
        """Ends the use of a slot by one sequence; the adapter stays until another one needs the slot."""
        self._ref_counts[digest] -= 1
        if not self._ref_counts[digest]:
            del self._ref_counts[digest]

    def release_all(self) -> None:
        """Ends the use of all slots by sequences; the adapters stay until they are removed."""
        self._ref_counts.clear()

    def remove(self, digest: str) -> int | None:
        """Frees the slot of an adapter that no sequence uses, and returns it; None if there is nothing to free."""
        if digest in self._ref_counts or digest not in self._slot_of:
            return None
        slot = self._slot_of.pop(digest)
        del self._bytes[digest]
        self._free.append(slot)
        return slot

    def pin(self, digest: str, pinned: bool = True) -> None:
        """Excludes an adapter from eviction, now or once it is in a slot; or includes it again.

        Raises:
            CapacityError: Every slot would be pinned.
        """
        if not pinned:
            self._pinned.discard(digest)
        elif len(self._pinned | {digest}) < self._num_slots:
            self._pinned.add(digest)
        else:
            raise CapacityError(
                f"{len(self._pinned)} adapters are pinned, and of {self._num_slots} slots one must stay unpinned.",
                hint="Raise max_loras, or unpin another adapter.",
            )

    def _evictable(self) -> str | None:
        return next(filter(self._is_idle, self._slot_of), None)

    def _is_idle(self, digest: str) -> bool:
        return digest not in self._ref_counts and digest not in self._pinned

    def _bytes_of(self, digests: Iterable[str]) -> int:
        return sum(self._bytes.get(digest, 0) for digest in digests)

    def _evict(self) -> None:
        digest = self._evictable()
        if digest is None:
            raise CapacityError(
                "Every slot is in use or pinned.", hint="Raise max_loras, or unpin an adapter."
            )
        self.evictions += 1
        self.remove(digest)
