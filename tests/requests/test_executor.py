"""Requests are prepared off the event loop, one at a time."""

import asyncio
import threading
import time
from contextvars import ContextVar

from adapterhub.requests.executor import RequestExecutor

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


async def test_a_closed_executor_still_runs_so_that_the_engine_reports_the_end():
    executor = RequestExecutor()
    executor.close()
    assert await executor.run(lambda: 1) == 1
    executor.close()
