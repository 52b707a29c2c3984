"""The waiting queue: in order, never bypassed too often, nothing lost or started twice."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adapterhub.engine.scheduling.waiting_queue import AGING_SECONDS, WaitingQueue


@dataclass(eq=False)
class Request:
    number: int
    priority: int = 0
    needs: str = ""


def starting(queue: WaitingQueue[Request], now: float, *, room: int = 99, blocked: str = "") -> list[int]:
    """The requests that start while some resources are in use."""
    started: list[int] = []

    def try_start(one: Request) -> bool:
        if one.needs and one.needs in blocked:
            return False
        started.append(one.number)
        return True

    queue.schedule(now, room, try_start)
    return started


def queue_of(*requests: Request, max_bypasses: int = 3) -> WaitingQueue[Request]:
    queue = WaitingQueue[Request](max_bypasses)
    for one in requests:
        queue.push(one, 0.0)
    return queue


@given(st.lists(st.integers(-3, 3)), st.integers(1, 5))
def test_by_priority_then_by_arrival(priorities: list[int], room: int):
    requests = [Request(number, priority) for number, priority in enumerate(priorities)]
    queue = queue_of(*requests)
    got: list[int] = []
    while len(queue):
        started = starting(queue, 0.0, room=room)
        assert 0 < len(started) <= room
        got += started
    assert got == [one.number for one in sorted(requests, key=lambda one: -one.priority)]


def test_aging_makes_up_for_a_low_priority():
    queue = WaitingQueue[Request](3)
    queue.push(Request(0, priority=0), 0.0)
    queue.push(Request(1, priority=2), 1.5 * AGING_SECONDS)
    assert starting(queue, 1.5 * AGING_SECONDS, room=1) == [1]
    queue.push(Request(2, priority=2), 2.5 * AGING_SECONDS)
    assert starting(queue, 2.5 * AGING_SECONDS, room=1) == [0]


@given(st.integers(0, 6), st.integers(1, 20))
def test_one_that_waits_for_a_load_is_bypassed_freely(max_bypasses: int, others: int):
    queue = queue_of(*(Request(number) for number in range(others + 1)), max_bypasses=max_bypasses)
    started: list[int] = []
    queue.schedule(0.0, 99, lambda one: started.append(one.number) or True if one.number else None)
    assert started == [*range(1, others + 1)]
    assert [one.number for one in queue] == [0]


@given(st.integers(0, 6), st.integers(1, 20))
def test_within_one_step_too_bypasses_are_bounded(max_bypasses: int, others: int):
    queue = queue_of(
        Request(0, needs="a"), *(Request(n) for n in range(1, others + 1)), max_bypasses=max_bypasses
    )
    assert starting(queue, 0.0, blocked="a") == [*range(1, min(max_bypasses, others) + 1)]


def test_when_the_bypassed_one_has_started_the_others_go_on():
    queue = queue_of(Request(0, needs="a"), *(Request(number) for number in range(1, 5)), max_bypasses=1)
    assert starting(queue, 0.0, blocked="a") == [1]
    assert starting(queue, 0.0, blocked="a") == []
    assert starting(queue, 0.0) == [0, 2, 3, 4]


def test_requests_are_removed_by_a_condition():
    requests = [Request(number) for number in range(4)]
    queue = queue_of(*requests)
    assert queue.remove_if(lambda one: one.number % 2 == 1) == [requests[1], requests[3]]
    assert starting(queue, 0.0) == [0, 2]


class Queueing(RuleBasedStateMachine):
    """Requests of one priority arrive, are removed, and start when their resources are free."""

    MAX_BYPASSES = 3

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue[Request](self.MAX_BYPASSES)
        self.waiting: list[Request] = []
        self.bypasses: dict[int, int] = {}
        self.pushed, self.now = 0, 0.0

    @rule(needs=st.sampled_from(["", "a", "b"]), after=st.floats(0, 5))
    def push(self, needs: str, after: float) -> None:
        self.now += after
        one = Request(self.pushed, needs=needs)
        self.pushed += 1
        self.queue.push(one, self.now)
        self.waiting.append(one)

    @rule(room=st.integers(1, 8), blocked=st.sampled_from(["", "a", "b", "ab"]))
    def start(self, room: int, blocked: str) -> None:
        for number in starting(self.queue, self.now, room=room, blocked=blocked):
            mine = [one for one in self.waiting if one.number == number]
            assert len(mine) == 1, "started twice, or never pushed"
            for earlier in self.waiting[: self.waiting.index(mine[0])]:
                self.bypasses[earlier.number] = self.bypasses.get(earlier.number, 0) + 1
            self.waiting.remove(mine[0])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.waiting))
        assert self.queue.remove_if(lambda other: other is one) == [one]
        self.waiting.remove(one)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert sorted(one.number for one in self.queue) == [one.number for one in self.waiting]
        assert len(self.queue) == len(self.waiting)

    @invariant()
    def bypasses_are_bounded(self) -> None:
        assert max(self.bypasses.values(), default=0) <= self.MAX_BYPASSES


TestQueueing = Queueing.TestCase
TestQueueing.settings = settings(max_examples=50, stateful_step_count=30)
