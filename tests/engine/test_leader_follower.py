"""Who runs the steps: one thread at a time, and nobody hangs when it ends, fails or is collected."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import TokenOutput
from adapterhub.engine.scheduling.background_loop import BackgroundLoop
from adapterhub.engine.scheduling.leader_follower import LeaderFollower, Waiter
from adapterhub.engine.scheduling.sequence import OutputQueue
from adapterhub.errors import AdapterHubError
from tests.engine.maker import NOTHING, counts, in_threads, prompt_of, request, tokens

SOON = 20.0


class Work:
    """Answers that need some steps each; every step brings all of them forward. Notes who steps."""

    def __init__(self) -> None:
        self.left: dict[Waiter, int] = {}
        self.steps = self.inside = self.most_inside = 0
        self.fail_at = -1
        self.leaders: set[int] = set()
        self.turns = LeaderFollower(self._step, lambda: None, lambda: False)

    def ask(self, steps: int, after: Callable[[], object] = lambda: None) -> None:
        waiter = Waiter()
        self.left[waiter] = steps
        after()
        self.turns.until(lambda: self.left[waiter] <= 0, waiter)

    def _step(self) -> None:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.leaders.add(threading.get_ident())
        time.sleep(0.0005)
        self.steps += 1
        if self.steps == self.fail_at:
            self.inside -= 1
            raise ZeroDivisionError
        for waiter in list(self.left):
            self.left[waiter] -= 1
            if self.left[waiter] == 0:
                waiter.wake()
        self.inside -= 1


def test_one_thread_steps_at_a_time_and_every_one_is_served():
    work, everyone = Work(), threading.Barrier(40)

    def follow() -> None:
        everyone.wait(SOON)
        while not work.leaders:  # whoever has the most steps would lead to the end
            time.sleep(0.001)

    asks = [lambda steps=steps: work.ask(steps, everyone.wait) for steps in range(1, 40)]  # type: ignore[misc]
    in_threads([*asks, lambda: work.ask(40, follow)])
    assert work.most_inside == 1
    assert 40 <= work.steps <= 80, "they share their steps"
    assert len(work.leaders) > 1, "when a leader has its answer, another one goes on"
    assert not work.turns._waiting


def test_a_lone_caller_leads_itself():
    work = Work()
    work.ask(5)
    assert (work.steps, work.leaders) == (5, {threading.get_ident()})


def test_when_the_leader_fails_another_one_goes_on():
    work = Work()
    work.fail_at = 3
    failed: list[str] = []

    def ask() -> None:
        try:
            work.ask(10)
        except ZeroDivisionError:
            failed.append("")

    in_threads([ask] * 8)
    assert len(failed) == 1


def test_tidying_is_left_to_the_leader_and_not_forgotten():
    tidied, todo, inside = [], [1], threading.Event()

    def tidy() -> None:
        tidied.append(threading.get_ident())
        todo.clear()

    def step() -> None:
        inside.set()
        time.sleep(0.05)

    turns = LeaderFollower(step, tidy, lambda: bool(todo))
    started = time.monotonic()
    leader = threading.Thread(target=turns.until, args=(lambda: time.monotonic() > started + 0.2, Waiter()))
    leader.start()
    inside.wait()
    turns.tidy()
    assert tidied == [], "another thread leads"
    leader.join()
    assert tidied == [leader.ident]
    todo.append(1)
    turns.tidy()
    assert tidied[1:] == [threading.get_ident()]


def test_a_collection_within_the_lock_does_not_lock_up():
    """An abandoned stream tidies when it is collected, which may be anywhere, also where this thread holds the lock."""
    todo: list[int] = []
    turns = LeaderFollower(lambda: None, todo.clear, lambda: bool(todo))

    class Collects(set):  # type: ignore[type-arg]
        collected = 0

        def __iter__(self) -> Iterator[object]:  # a leader resigns, and holds the lock
            if not self.collected:
                self.collected = 1
                todo.append(1)
                turns.tidy()
            return super().__iter__()

    turns._waiting = waiting = Collects()
    ready = iter([False, False, True, True])
    in_threads([lambda: turns.until(lambda: next(ready), Waiter())])
    assert (waiting.collected, todo) == (1, [])


# The driver


def tickets_of(turns_step: list[OutputQueue], count: int) -> list[OutputQueue]:
    tickets = [OutputQueue(lambda: None, every_piece=False) for _ in range(count)]
    turns_step += tickets
    return tickets


def driver_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "adapterhub-steps"]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "it never happens"
        time.sleep(0.005)


def test_the_drivers_thread_lives_while_there_is_work(monkeypatch):
    monkeypatch.setattr("adapterhub.engine.scheduling.background_loop.IDLE_SECONDS", 0.05)
    todo: list[OutputQueue] = []
    turns = LeaderFollower(
        lambda: todo.pop().put(TokenOutput("", 0, None, "stop")), lambda: None, lambda: False
    )
    driver = BackgroundLoop(turns)
    for _ in range(3):
        tickets = tickets_of(todo, 5)
        driver.serve(tickets)
        wait_for(lambda tickets=tickets: not any(ticket.open for ticket in tickets))  # type: ignore[misc]
        wait_for(lambda: not driver_threads())
    driver.close()
    driver.close()


# Through the engine


@pytest.fixture
def engine(tiny_base: Path) -> Iterator[BatchingEngine]:
    limits = EngineLimits(max_loras=2, kv_cache_mib=64)
    engine = BatchingEngine(load_base(tiny_base, quantization=None, device="cpu"), limits)
    yield engine
    engine.close()
    assert not driver_threads()


def test_a_hundred_tasks_share_their_steps(engine: BatchingEngine):
    batch = [request(prompt_of(number, 5)) for number in range(100)]
    wanted = [list(one[0].token_ids) for one in engine.generate(batch)]
    before = engine.stats().steps

    async def ask() -> list[list[int]]:
        answers = await asyncio.wait_for(
            asyncio.gather(*(engine.agenerate([one]) for one in batch)), 3 * SOON
        )
        return [list(one[0][0].token_ids) for one in answers]

    assert asyncio.run(ask()) == wanted
    # 16 run at a time: 7 times 12 steps, and some while the first tasks come in.
    assert engine.stats().steps - before < 150
    assert counts(engine) == NOTHING


def test_tasks_that_are_cancelled_free_their_lanes(engine: BatchingEngine):
    wanted = tokens(engine, request(prompt_of(0, 5), max_tokens=100))

    async def some() -> list[int]:
        tasks = [
            asyncio.create_task(engine.agenerate([request(prompt_of(number, 5), max_tokens=100)]))
            for number in range(10)
        ]
        stream = engine.astream(request(prompt_of(3, 5), max_tokens=100))
        await anext(stream)
        for task in tasks[1:]:
            task.cancel()
        gone = await asyncio.gather(*tasks[1:], return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in gone)
        await stream.aclose()
        answers = await asyncio.wait_for(tasks[0], SOON)
        return list(answers[0][0].token_ids)

    assert asyncio.run(some()) == wanted
    wait_for(lambda: counts(engine) == NOTHING)


def test_a_loop_that_is_closed_does_no_harm(engine: BatchingEngine):
    wanted = tokens(engine, request(prompt_of(0, 5)))
    loop = asyncio.new_event_loop()
    stream = engine.astream(request(prompt_of(1, 5), max_tokens=200))
    loop.run_until_complete(anext(stream))
    loop.close()
    assert tokens(engine, request(prompt_of(0, 5))) == wanted
    wait_for(lambda: counts(engine) == NOTHING)  # the answer nobody waits for has come to its end
    with pytest.raises(StopIteration):
        stream.aclose().send(None)


def test_threads_and_tasks_share_the_engine(engine: BatchingEngine):
    batch = [request(prompt_of(number, 5)) for number in range(8)]
    wanted = [tokens(engine, one) for one in batch]
    got: dict[int, list[int]] = {}

    async def ask() -> None:
        answers = await asyncio.gather(*(engine.agenerate([one]) for one in batch[4:]))
        got.update({4 + place: list(one[0][0].token_ids) for place, one in enumerate(answers)})

    def thread(number: int) -> None:
        got[number] = tokens(engine, batch[number])

    in_threads([lambda: asyncio.run(ask()), *(lambda n=n: thread(n) for n in range(4))])  # type: ignore[misc]
    assert [got[number] for number in range(8)] == wanted


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["_prefetch", "_compose", "_accept"])
def test_a_step_that_breaks_ends_what_it_had_and_nobody_hangs(engine, monkeypatch, place: str, error):
    """A defect, or Ctrl-C in the thread that leads: its caller gets it, others an error or the right answer."""
    batch = [request(prompt_of(number, 5), max_tokens=30) for number in range(4)]
    wanted = [list(one[0].token_ids) for one in engine.generate(batch)]
    whole, broken = getattr(engine._scheduler, place), []

    def breaks(*args: object, **kwargs: object) -> object:
        if not broken:  # on a busy machine the first answer might end before the third is asked for
            wait_for(lambda: len(engine._inbox) + len(engine._scheduler.jobs) == len(batch))
        if not broken and len(engine._scheduler._running) >= 3:
            broken.append(threading.get_ident())
            raise error("broken")
        return whole(*args, **kwargs)

    monkeypatch.setattr(engine._scheduler, place, breaks)
    outcomes: dict[int, object] = {}

    def ask(number: int) -> None:
        try:
            outcomes[number] = tokens(engine, batch[number])
        except (error, AdapterHubError) as raised:
            outcomes[number] = raised

    in_threads([lambda number=number: ask(number) for number in range(4)])  # type: ignore[misc]
    assert len(broken) == 1
    assert sum(isinstance(outcome, error) for outcome in outcomes.values()) == 1
    for number, outcome in outcomes.items():
        assert isinstance(outcome, Exception | KeyboardInterrupt) or outcome == wanted[number]
    assert counts(engine) == NOTHING
    assert tokens(engine, batch[0]) == wanted[0]


def test_a_step_that_breaks_in_the_drivers_thread_ends_the_tasks(engine: BatchingEngine, monkeypatch):
    wanted = tokens(engine, request(prompt_of(0, 5)))
    whole, broken = engine._scheduler._compose, []

    def breaks() -> object:
        if not broken:
            broken.append(1)
            raise RuntimeError("broken")
        return whole()

    monkeypatch.setattr(engine._scheduler, "_compose", breaks)

    async def ask() -> list[int]:
        return list((await engine.agenerate([request(prompt_of(0, 5))]))[0][0].token_ids)

    async def twice() -> list[int]:
        with pytest.raises(AdapterHubError):
            await asyncio.wait_for(ask(), SOON)
        return await asyncio.wait_for(ask(), SOON)

    assert asyncio.run(twice()) == wanted


def test_a_stream_collected_while_others_are_queued_does_not_lock_up(engine: BatchingEngine, monkeypatch):
    wanted = tokens(engine, request(prompt_of(0, 5)))
    cycle: list[object] = [engine.stream(request(prompt_of(1, 5)))]
    next(cycle[0])  # type: ignore[call-overload]
    cycle.append(cycle)
    waiting = type(engine._scheduler).waiting

    def collecting(scheduler: object) -> int:  # it is asked for while the inbox is locked
        gc.collect()
        return waiting.fget(scheduler)

    monkeypatch.setattr(type(engine._scheduler), "waiting", property(collecting))
    del cycle
    got: list[list[int]] = []
    in_threads([lambda: got.append(tokens(engine, request(prompt_of(0, 5))))])
    assert got == [wanted]
    assert counts(engine) == NOTHING
