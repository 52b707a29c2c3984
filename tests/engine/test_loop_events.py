"""Events of event loops: none is lost, and those that come together are set by one call."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from contextlib import suppress

from adapterhub.engine.scheduling.loop_events import LoopEvents

SOON = 20.0


class CountedLoop(asyncio.SelectorEventLoop):
    """Counts the calls that other threads hand to it."""

    calls = 0

    def call_soon_threadsafe(self, *args, **kwargs):
        self.calls += 1
        return super().call_soon_threadsafe(*args, **kwargs)


async def wait_for_all(events: list) -> None:
    async with asyncio.timeout(SOON):
        await asyncio.gather(*(event.wait() for event in events))


def test_events_of_one_block_are_set_by_one_call_at_its_end():
    made = LoopEvents()

    async def main(loop: CountedLoop) -> None:
        events = [made.make() for _ in range(20)]
        before = loop.calls
        with made.together():
            for event in events:
                event.wake()
            assert loop.calls == before
        assert loop.calls == before + 1
        await wait_for_all(events)
        events[0].wake()  # outside of a block: at once
        assert loop.calls == before + 2
        await wait_for_all(events[:1])

    loop = CountedLoop()
    try:
        loop.run_until_complete(main(loop))
    finally:
        loop.close()


def test_a_block_that_fails_sets_its_events_too():
    async def main() -> None:
        made = LoopEvents()
        event = made.make()
        with suppress(ZeroDivisionError), made.together():
            event.wake()
            raise ZeroDivisionError
        await wait_for_all([event])

    asyncio.run(main())


def test_none_is_lost_between_threads_that_wake_and_one_that_ends_blocks():
    made, rounds = LoopEvents(), 300

    async def main() -> None:
        done = threading.Event()

        def blocks() -> None:
            while not done.is_set():
                with made.together():
                    pass

        def wakes(event, turn: threading.Semaphore) -> None:
            for _ in range(rounds):
                turn.acquire()
                event.wake()

        events, turns = [made.make() for _ in range(3)], [threading.Semaphore(1) for _ in range(3)]
        work = [threading.Thread(target=wakes, args=one) for one in zip(events, turns, strict=True)]
        work.append(threading.Thread(target=blocks))
        for thread in work:
            thread.start()

        async def reads(event, turn: threading.Semaphore) -> None:
            for number in range(rounds):
                await event.wait()
                if number < rounds - 1:
                    turn.release()

        try:
            async with asyncio.timeout(SOON):
                await asyncio.gather(*(reads(*one) for one in zip(events, turns, strict=True)))
        finally:
            done.set()
            for turn in turns:
                turn.release(rounds)
            for thread in work:
                thread.join(SOON)

    asyncio.run(main())


def test_a_closed_loop_is_left_alone_and_forgotten():
    made = LoopEvents()
    loop = asyncio.new_event_loop()

    async def make():
        return made.make()

    event = loop.run_until_complete(make())
    loop.close()
    event.wake()
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None
    event.wake()
    with made.together():
        event.wake()
