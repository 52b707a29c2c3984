"""Which adapter is in which slot of the model: in use, idle, or pinned."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from adapterhub.errors import CapacityError


class LoraSlotTable:
    """The model's slots. It moves nothing itself: who acquires a slot loads it.

    Args:
        slots: How many there are.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._free = list(reversed(range(slots)))
        self._slot_of: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._users: dict[str, int] = {}
        self._pinned: set[str] = set()
        self.hits = self.loads = self.evictions = 0

    @property
    def resident(self) -> tuple[str, ...]:
        """The digests of the adapters in slots, least recently used first."""
        return tuple(self._slot_of)

    @property
    def users_of(self) -> Mapping[str, int]:
        """How many answers use each adapter that is in use."""
        return self._users

    def slot_of(self, digest: str) -> int | None:
        """The slot that an adapter is in."""
        return self._slot_of.get(digest)

    def can_acquire(self, digest: str) -> bool:
        """Whether an adapter is in a slot, or could be put into one now."""
        return digest in self._slot_of or bool(self._free) or self._idle() is not None

    def acquire(self, digest: str) -> tuple[int, bool]:
        """Takes an adapter's slot for one answer.

        Returns:
            The slot, and whether the adapter must be loaded into it.

        Raises:
            CapacityError: All slots are in use or pinned; see `can_acquire`.
        """
        if digest in self._slot_of:
            self.hits += 1
            self._slot_of.move_to_end(digest)
            self._users[digest] = self._users.get(digest, 0) + 1
            return self._slot_of[digest], False
        if not self._free:
            self._evict()
        self.loads += 1
        self._slot_of[digest] = slot = self._free.pop()
        self._users[digest] = 1
        return slot, True

    def release(self, digest: str) -> None:
        """Ends one answer's use of its adapter's slot; the adapter stays until the slot is needed."""
        self._users[digest] -= 1
        if not self._users[digest]:
            del self._users[digest]

    def forget(self, digest: str) -> int | None:
        """Empties the slot of an adapter that no answer uses, and returns it."""
        if digest in self._users or digest not in self._slot_of:
            return None
        slot = self._slot_of.pop(digest)
        self._free.append(slot)
        return slot

    def pin(self, digest: str, pinned: bool = True) -> None:
        """Keeps an adapter in its slot, once it is in one, even while no answer uses it.

        Raises:
            CapacityError: No slot would be left for the others.
        """
        if not pinned:
            self._pinned.discard(digest)
        elif len(self._pinned | {digest}) < self._slots:
            self._pinned.add(digest)
        else:
            raise CapacityError(
                f"{len(self._pinned)} adapters are pinned, and of {self._slots} slots one has to stay free.",
                hint="Raise max_loras, or unpin another adapter.",
            )

    def _idle(self) -> str | None:
        return next((d for d in self._slot_of if d not in self._users and d not in self._pinned), None)

    def _evict(self) -> None:
        digest = self._idle()
        if digest is None:
            raise CapacityError(
                "Every slot is in use or pinned.", hint="Raise max_loras, or unpin an adapter."
            )
        self.evictions += 1
        self.forget(digest)
