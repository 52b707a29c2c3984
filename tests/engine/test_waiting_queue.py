"""The queue: in order, never passed more often than its patience, nothing lost or started twice."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adapterhub.engine.scheduling.waiting_queue import AGEING_SECONDS, WaitingQueue


@dataclass(eq=False)
class Asked:
    number: int
    priority: int = 0
    needs: str = ""


def starting(queue: WaitingQueue[Asked], now: float, *, room: int = 99, blocked: str = "") -> list[int]:
    """Which requests start when some resources are in use."""
    started: list[int] = []

    def try_start(one: Asked) -> bool:
        if one.needs and one.needs in blocked:
            return False
        started.append(one.number)
        return True

    queue.start(now, room, try_start)
    return started


def queue_of(*requests: Asked, patience: int = 3) -> WaitingQueue[Asked]:
    queue = WaitingQueue[Asked](patience)
    for one in requests:
        queue.push(one, 0.0)
    return queue


@given(st.lists(st.integers(-3, 3)), st.integers(1, 5))
def test_by_priority_then_by_arrival(priorities: list[int], room: int):
    requests = [Asked(number, priority) for number, priority in enumerate(priorities)]
    queue = queue_of(*requests)
    got: list[int] = []
    while len(queue):
        started = starting(queue, 0.0, room=room)
        assert 0 < len(started) <= room
        got += started
    assert got == [one.number for one in sorted(requests, key=lambda one: -one.priority)]


def test_waiting_long_makes_up_for_a_low_priority():
    queue = WaitingQueue[Asked](3)
    queue.push(Asked(0, priority=0), 0.0)
    queue.push(Asked(1, priority=2), 1.5 * AGEING_SECONDS)
    assert starting(queue, 1.5 * AGEING_SECONDS, room=1) == [1]
    queue.push(Asked(2, priority=2), 2.5 * AGEING_SECONDS)
    assert starting(queue, 2.5 * AGEING_SECONDS, room=1) == [0]


@given(st.integers(0, 6), st.integers(1, 20))
def test_one_that_waits_for_a_file_is_passed_freely(patience: int, others: int):
    queue = queue_of(*(Asked(number) for number in range(others + 1)), patience=patience)
    started: list[int] = []
    queue.start(0.0, 99, lambda one: started.append(one.number) or True if one.number else None)
    assert started == [*range(1, others + 1)]
    assert [one.number for one in queue] == [0]


@given(st.integers(0, 6), st.integers(1, 20))
def test_within_one_step_too_nobody_is_passed_more_often_than_its_patience(patience: int, others: int):
    queue = queue_of(Asked(0, needs="a"), *(Asked(n) for n in range(1, others + 1)), patience=patience)
    assert starting(queue, 0.0, blocked="a") == [*range(1, min(patience, others) + 1)]


def test_when_an_impatient_one_has_started_the_others_go_on():
    queue = queue_of(Asked(0, needs="a"), *(Asked(number) for number in range(1, 5)), patience=1)
    assert starting(queue, 0.0, blocked="a") == [1]
    assert starting(queue, 0.0, blocked="a") == []
    assert starting(queue, 0.0) == [0, 2, 3, 4]


def test_the_unwanted_are_taken_out():
    requests = [Asked(number) for number in range(4)]
    queue = queue_of(*requests)
    assert queue.discard(lambda one: one.number % 2 == 1) == [requests[1], requests[3]]
    assert starting(queue, 0.0) == [0, 2]


class Queueing(RuleBasedStateMachine):
    """Requests of one priority come, are withdrawn, and start as their resources are free."""

    PATIENCE = 3

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue[Asked](self.PATIENCE)
        self.waiting: list[Asked] = []
        self.passed: dict[int, int] = {}
        self.asked, self.now = 0, 0.0

    @rule(needs=st.sampled_from(["", "a", "b"]), after=st.floats(0, 5))
    def ask(self, needs: str, after: float) -> None:
        self.now += after
        one = Asked(self.asked, needs=needs)
        self.asked += 1
        self.queue.push(one, self.now)
        self.waiting.append(one)

    @rule(room=st.integers(1, 8), blocked=st.sampled_from(["", "a", "b", "ab"]))
    def start(self, room: int, blocked: str) -> None:
        for number in starting(self.queue, self.now, room=room, blocked=blocked):
            mine = [one for one in self.waiting if one.number == number]
            assert len(mine) == 1, "started twice, or never asked"
            for earlier in self.waiting[: self.waiting.index(mine[0])]:
                self.passed[earlier.number] = self.passed.get(earlier.number, 0) + 1
            self.waiting.remove(mine[0])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.waiting))
        assert self.queue.discard(lambda other: other is one) == [one]
        self.waiting.remove(one)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert sorted(one.number for one in self.queue) == [one.number for one in self.waiting]
        assert len(self.queue) == len(self.waiting)

    @invariant()
    def patience_holds(self) -> None:
        assert max(self.passed.values(), default=0) <= self.PATIENCE


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=50, stateful_step_count=30)
