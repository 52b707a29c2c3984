"""The thread that does all HTTP: what runs there, what is raised, and how it ends."""

from __future__ import annotations

import asyncio
import threading

import pytest

from adapterhub.errors import EngineClosedError
from adapterhub.vllm import loop_thread
from adapterhub.vllm.loop_thread import LoopThread
from tests.waiting import wait_for


def is_running() -> bool:
    return any(thread.name == "adapterhub-vllm" for thread in threading.enumerate())


async def name_of_thread() -> str:
    return threading.current_thread().name


async def fail() -> None:
    raise ValueError("no")


def test_a_coroutine_runs_there_and_raises_here():
    loop = LoopThread()
    assert loop.run(name_of_thread()) == "adapterhub-vllm"
    with pytest.raises(ValueError, match="no"):
        loop.run(fail())
    loop.close(asyncio.sleep(0))
    assert not is_running()


def test_it_ends_after_its_last_coroutine_even_if_that_fails():
    loop, ended = LoopThread(), []

    async def last() -> None:
        await asyncio.sleep(0.05)
        ended.append(True)

    loop.close(last())
    assert ended
    assert not is_running()
    LoopThread().close(asyncio.wait_for(asyncio.sleep(9), 0.01))
    assert not is_running()


def test_closing_ends_what_still_runs_there_and_refuses_what_comes_later():
    loop, ended = LoopThread(), []

    def wait() -> None:
        with pytest.raises(EngineClosedError):
            loop.run(asyncio.sleep(60))
        ended.append(True)

    waiting = [threading.Thread(target=wait) for _ in range(3)]
    for thread in waiting:
        thread.start()
    loop.close(asyncio.sleep(0))
    for thread in waiting:
        thread.join()
    assert len(ended) == 3
    with pytest.raises(EngineClosedError):
        loop.run(asyncio.sleep(60))


def test_it_can_be_closed_in_its_own_thread():
    loop = LoopThread()
    loop.call_soon(lambda: loop.close(asyncio.sleep(0.01)))
    wait_for(lambda: not is_running())
    loop.call_soon(print)  # nothing, and no error


def test_closing_waits_for_its_last_coroutine_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop_thread, "CLOSE_SECONDS", 0.01)
    LoopThread().close(asyncio.Event().wait())
    wait_for(lambda: not is_running())


def test_closing_does_not_wait_for_what_blocks_the_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(loop_thread, "CLOSE_SECONDS", 0.01)
    loop, blocked = LoopThread(), threading.Event()
    loop.call_soon(blocked.wait)
    loop.close(asyncio.sleep(0))
    assert "still being closed" in caplog.text
    blocked.set()
    wait_for(lambda: not is_running())
