"""Begins few requests in one round of the event loop, so that a burst of them does not hold up the others."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

MAX_BEGUN = 8
"""Requests that begin in one round; each takes some tenths of a millisecond up to where it first waits."""


class PacingMiddleware:
    """Has the requests that arrive together begin one after the other, in their order.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._begun = 0  # in this round

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on when it is its turn; see the ASGI specification."""
        while self._begun >= MAX_BEGUN:
            await asyncio.sleep(0)
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._end_round)
        self._begun += 1
        await self._app(scope, receive, send)

    def _end_round(self) -> None:
        self._begun = 0
