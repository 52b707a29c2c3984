"""A server for this machine alone answers to this machine's names alone."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from adapterhub.errors import InvalidRequestError
from adapterhub.server.errors import error_response
from adapterhub.server.exposure import is_loopback


class LocalNamesMiddleware:
    """Refuses requests whose `Host` is no name of the loopback interface.

    A web page can point a name of its own at 127.0.0.1 and call, in the browser of whoever reads it, a server that asks
    for no key (DNS rebinding). The browser sends the page's name.

    Args:
        app: What answers the others.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and not is_loopback(_name(Headers(scope=scope).get("host", ""))):
            app = error_response(
                InvalidRequestError(
                    "This server has no keys, and answers to 127.0.0.1 and localhost only.",
                    hint="Call it by these names, or start it with --api-key-file.",
                )
            )
        await app(scope, receive, send)


def _name(host: str) -> str:
    """The host of a header, without its port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
