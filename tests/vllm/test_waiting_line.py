"""The order of those who wait for a free server."""

from __future__ import annotations

import asyncio

import pytest

from adapterhub.errors import CapacityError
from adapterhub.vllm.waiting_line import WaitingLine


class Line:
    """Tasks that wait in a line, and the order in which their turn came."""

    def __init__(self, *priorities: int) -> None:
        self.line = WaitingLine()
        self.order: list[int] = []
        self.tasks = [
            asyncio.create_task(self._wait(number, self.line.place(priority)))
            for number, priority in enumerate(priorities)
        ]

    async def _wait(self, number: int, place: tuple[int, int]) -> None:
        await self.line.wait(place)
        self.order.append(number)

    async def wake(self, count: int = 1) -> list[int]:
        for _ in range(count):
            self.line.wake_next()
        await asyncio.sleep(0.001)
        return self.order


async def test_priority_then_age():
    line = Line(0, 5, 0, 5, -1)
    await asyncio.sleep(0.001)
    assert await line.wake(5) == [1, 3, 0, 2, 4]
    assert not line.line


async def test_one_at_a_time():
    line = Line(0, 0)
    await asyncio.sleep(0.001)
    assert await line.wake() == [0]
    assert line.line
    assert await line.wake() == [0, 1]


async def test_who_gives_up_is_passed_over():
    line = Line(0, 0, 0)
    await asyncio.sleep(0.001)
    line.tasks[0].cancel()
    await asyncio.sleep(0.001)
    assert await line.wake() == [1]


async def test_who_gives_up_in_its_turn_passes_it_on():
    line = Line(0, 0)
    await asyncio.sleep(0.001)
    line.line.wake_next()
    line.tasks[0].cancel()
    await asyncio.sleep(0.001)
    assert line.order == [1]


async def test_a_turn_is_passed_on_but_where_there_was_no_room():
    line = Line(0, 0)
    await asyncio.sleep(0.001)
    with pytest.raises(CapacityError), line.line.turn():
        raise CapacityError("full")
    assert await line.wake(0) == []
    with pytest.raises(ValueError), line.line.turn():
        raise ValueError
    with line.line.turn():
        pass
    assert await line.wake(0) == [0, 1]
