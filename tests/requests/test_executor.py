"""Requests are prepared off the event loop, one at a time."""

import asyncio
import subprocess
import sys
import threading
import time
from contextvars import ContextVar

import pytest

from adapterhub.errors import CapacityError
from adapterhub.requests.executor import MAX_STUCK, RequestExecutor

CALLER: ContextVar[str] = ContextVar("caller", default="none")


async def test_one_thread_with_the_callers_context():
    executor, seen = RequestExecutor(), []
    CALLER.set("json")
    await asyncio.gather(
        *(executor.run(lambda: seen.append((threading.get_ident(), CALLER.get()))) for _ in range(20))
    )
    assert set(seen) == {(seen[0][0], "json")}
    assert seen[0][0] != threading.get_ident()
    executor.close()
    deadline = time.monotonic() + 5
    while any(thread.ident == seen[0][0] for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "closing ends the thread"
        await asyncio.sleep(0.01)


async def test_fitting_the_router_does_not_block_other_requests():
    executor, may_fit = RequestExecutor(), threading.Event()
    fitting = asyncio.ensure_future(executor.fit_router(lambda: may_fit.wait(10)))
    assert await asyncio.wait_for(executor.run(lambda: "prepared"), 5) == "prepared"
    assert not fitting.done()
    may_fit.set()
    await fitting
    executor.close()


async def test_stuck_work_holds_no_other():
    executor, release = RequestExecutor(stuck_after=0.02), threading.Event()
    stuck = [asyncio.ensure_future(executor.run(release.wait)) for _ in range(MAX_STUCK)]
    assert await asyncio.wait_for(executor.run(lambda: "prepared"), 30) == "prepared"
    assert await asyncio.wait_for(executor.run(lambda: "again"), 30) == "again"
    assert not any(one.done() for one in stuck)
    names = [thread for thread in threading.enumerate() if thread.name == "adapterhub-prepare"]
    assert all(thread.daemon for thread in names), "the interpreter's exit waits for none"
    release.set()
    assert await asyncio.gather(*stuck) == [True] * MAX_STUCK
    executor.close()


async def test_cancelled_stuck_work_holds_no_other():
    executor, release = RequestExecutor(stuck_after=0.02), threading.Event()
    stuck = asyncio.ensure_future(executor.run(release.wait))
    await asyncio.sleep(0)
    stuck.cancel()
    assert await asyncio.wait_for(executor.run(lambda: "prepared"), 30) == "prepared"
    release.set()
    executor.close()


async def test_the_number_of_stuck_threads_is_bounded():
    executor, release = RequestExecutor(stuck_after=0.02), threading.Event()
    stuck = [asyncio.ensure_future(executor.run(release.wait)) for _ in range(MAX_STUCK + 1)]
    with pytest.raises(CapacityError, match="preparation") as caught:
        await asyncio.wait_for(executor.run(lambda: "prepared"), 30)
    assert caught.value.retryable
    release.set()
    assert await asyncio.gather(*stuck) == [True] * (MAX_STUCK + 1)
    assert await executor.run(lambda: "prepared") == "prepared"
    executor.close()


async def test_cancelled_work_that_has_not_begun_never_does():
    executor, release, passed, ran = RequestExecutor(), threading.Event(), threading.Event(), []
    first = asyncio.ensure_future(executor.run(release.wait))
    second = asyncio.ensure_future(executor.run(ran.append, 1))
    third = asyncio.ensure_future(executor.run(passed.set))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    release.set()
    assert passed.wait(30)  # the event loop does nothing meanwhile
    assert ran == []
    await asyncio.gather(first, third)
    executor.close()


async def test_work_that_waits_is_done_after_closing():
    executor, release = RequestExecutor(), threading.Event()
    running = [asyncio.ensure_future(executor.run(release.wait)) for _ in range(3)]
    await asyncio.sleep(0)
    executor.close()
    release.set()
    assert await asyncio.wait_for(asyncio.gather(*running), 30) == [True] * 3


async def test_errors_are_the_callers():
    executor = RequestExecutor()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            await executor.run(_raise, error)
    with pytest.raises(RuntimeError, match=r"raised StopIteration\.$"):
        await asyncio.wait_for(executor.run(_stop, "the prompt"), 30)
    assert await executor.run(lambda: 1) == 1
    executor.close()


def _stop(text: str) -> None:
    raise StopIteration(text)


def _raise(error: type[BaseException]) -> None:
    raise error


def test_the_interpreter_exits_while_work_is_stuck():
    code = (
        "import asyncio, threading; from adapterhub.requests.executor import RequestExecutor\n"
        "async def main():\n"
        "    asyncio.ensure_future(RequestExecutor().run(threading.Event().wait)); await asyncio.sleep(0.1)\n"
        "asyncio.run(main()); print('out')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "out\n"


async def test_a_closed_executor_still_runs_so_that_the_engine_reports_the_end():
    executor = RequestExecutor()
    executor.close()
    assert await executor.run(lambda: 1) == 1
    executor.close()
