"""The slot table: which adapter is in which slot, which one is evicted, and that references are balanced."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adapterhub.engine.scheduling.lora_slots import LoraSlotTable
from adapterhub.errors import CapacityError


def test_the_least_recently_used_one_is_evicted():
    table = LoraSlotTable(2)
    for digest in ("a", "b", "a"):
        table.acquire(digest)
        table.release(digest)
    assert table.acquire("c") == (1, True)
    assert table.resident == ("a", "c")
    assert (table.hits, table.loads, table.evictions) == (1, 3, 1)


def test_a_pin_holds_from_before_the_adapter_is_loaded_until_it_is_unpinned():
    table = LoraSlotTable(2)
    table.pin("a")
    table.acquire("a")
    table.release("a")
    table.acquire("b")
    assert not table.can_acquire("c")
    with pytest.raises(CapacityError, match="in use or pinned"):
        table.acquire("c")
    assert table.resident == ("a", "b")
    table.pin("a", pinned=False)
    assert table.acquire("c") == (0, True)


def test_one_slot_stays_unpinned():
    table = LoraSlotTable(2)
    table.pin("a")
    table.pin("a")
    with pytest.raises(CapacityError, match="1 adapters are pinned"):
        table.pin("b")
    table.pin("a", pinned=False)
    table.pin("b")


def test_removing_an_adapter_frees_its_slot():
    table = LoraSlotTable(2)
    slot, _ = table.acquire("a")
    assert table.remove("a") is None
    table.release("a")
    assert table.remove("a") == slot
    assert table.remove("a") is None
    assert {table.acquire("b")[0], table.acquire("c")[0]} == {0, 1}


def test_idle_adapters_leave_their_slots_for_the_memory_of_another_one():
    table = LoraSlotTable(4, max_bytes=100)
    for digest, size in (("plain", 0), ("a", 40), ("b", 40)):
        assert table.make_room(size) == []
        table.acquire(digest, size)
    assert not table.can_acquire("c", 60)  # a slot is free, but a and b are in use
    assert table.can_acquire("d", 20)
    for digest in ("plain", "a", "b"):
        table.release(digest)
    assert table.can_acquire("c", 60)
    assert not table.has_room(60)
    assert table.make_room(60) == [1]
    table.acquire("c", 60)
    assert table.resident == ("plain", "b", "c")
    assert table.evictions == 1
    table.remove("b")
    assert table.has_room(40)


def test_what_pinned_adapters_leave_no_room_for_is_refused():
    table = LoraSlotTable(3, max_bytes=100)
    table.pin("a")
    table.acquire("a", 60)
    with pytest.raises(CapacityError, match="Pinned adapters hold 60 bytes"):
        table.can_acquire("b", 50)
    assert table.can_acquire("b", 40)
    assert table.can_acquire("plain")


class Slots(RuleBasedStateMachine):
    """A table against a model of it: every adapter has at most one slot, and every slot at most one adapter."""

    SLOTS = 3
    DIGESTS = "abcdef"

    def __init__(self) -> None:
        super().__init__()
        self.table = LoraSlotTable(self.SLOTS)
        self.users: dict[str, int] = {}
        self.pinned: set[str] = set()

    @rule(digest=st.sampled_from(DIGESTS))
    def acquire(self, digest: str) -> None:
        before = {d: self.table.slot_of(d) for d in self.DIGESTS}
        not_evictable = [
            d for d, slot in before.items() if slot is not None and (self.users.get(d) or d in self.pinned)
        ]
        possible = before[digest] is not None or len(not_evictable) < self.SLOTS
        assert self.table.can_acquire(digest) == possible
        if not possible:
            with pytest.raises(CapacityError):
                self.table.acquire(digest)
            assert {d: self.table.slot_of(d) for d in self.DIGESTS} == before
            return
        slot, new = self.table.acquire(digest)
        assert (slot, new) == (self.table.slot_of(digest), before[digest] is None)
        assert slot in range(self.SLOTS)
        assert all(self.table.slot_of(d) == before[d] for d in not_evictable), (
            "an adapter in use or pinned has moved"
        )
        self.users[digest] = self.users.get(digest, 0) + 1

    @precondition(lambda self: any(self.users.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(d for d, users in self.users.items() if users)))
        self.table.release(digest)
        self.users[digest] -= 1

    @rule(digest=st.sampled_from(DIGESTS), pinned=st.booleans())
    def pin(self, digest: str, pinned: bool) -> None:
        if pinned and len(self.pinned | {digest}) == self.SLOTS:
            with pytest.raises(CapacityError):
                self.table.pin(digest)
            return
        self.table.pin(digest, pinned)
        (self.pinned.add if pinned else self.pinned.discard)(digest)

    @rule(digest=st.sampled_from(DIGESTS))
    def remove(self, digest: str) -> None:
        slot = self.table.slot_of(digest)
        assert self.table.remove(digest) == (None if self.users.get(digest) else slot)

    @invariant()
    def slots_are_distinct(self) -> None:
        slots = [self.table.slot_of(d) for d in self.table.resident]
        assert len(set(slots)) == len(slots) <= self.SLOTS

    @invariant()
    def references_are_balanced(self) -> None:
        assert dict(self.table.ref_counts) == {d: users for d, users in self.users.items() if users}


TestSlots = Slots.TestCase
TestSlots.settings = settings(max_examples=50, stateful_step_count=30)
