"""What no handler knows becomes a 500 without text, inside the other middleware: with its id and its log line."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterhub.server.errors import error_response


class FailureMiddleware:
    """Answers 500 where an application raises; an answer that has begun is cut off.

    Starlette's own handler of exceptions stands outside all middleware, so its answers had neither.

    Args:
        app: What may fail.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            await error_response(error)(scope, receive, send)
