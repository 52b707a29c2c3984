"""A burst of requests begins in several rounds of the event loop."""

from __future__ import annotations

import asyncio
from typing import Any

from adapterhub.server.middleware.pacing import MAX_BEGUN, PacingMiddleware


async def nothing(*_: Any) -> Any:
    pass


def begun_by_round(count: int) -> list[list[int]]:
    """Which of so many requests that arrive together begin in each round of the loop."""
    rounds: list[list[int]] = [[]]

    async def answer(scope: Any, *_: Any) -> None:
        rounds[-1].append(scope["number"])
        await asyncio.sleep(0)

    async def ask_all() -> None:
        app = PacingMiddleware(answer)
        asking = asyncio.gather(*(app({"number": number}, nothing, nothing) for number in range(count)))
        while not asking.done():
            await asyncio.sleep(0)
            rounds.append([])

    asyncio.run(ask_all())
    return [one for one in rounds if one]


def test_a_burst_begins_in_order_a_few_in_each_round():
    rounds = begun_by_round(3 * MAX_BEGUN + 1)
    assert [number for one in rounds for number in one] == list(range(3 * MAX_BEGUN + 1))
    assert max(map(len, rounds)) == MAX_BEGUN
    assert len(rounds) == 4


def test_few_requests_begin_at_once():
    assert begun_by_round(MAX_BEGUN) == [list(range(MAX_BEGUN))]
