"""A server for this machine alone answers this machine alone, and no web page that its user reads."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from adapterhub.errors import AdapterHubError, InvalidRequestError
from adapterhub.server.access.errors import PermissionDeniedError
from adapterhub.server.errors import error_response
from adapterhub.server.exposure import is_loopback


class LocalNamesMiddleware:
    """Refuses requests whose `Host` or `Origin` is no name of the loopback interface.

    A web page can call a server that asks for no key, in the browser of whoever reads it: under a name of its own that
    it points at 127.0.0.1 (DNS rebinding), or under 127.0.0.1 with a request that browsers send without asking, such
    as an upload, though the page may not read the answer. The browser sends the page's name in both.

    Args:
        app: What answers the others.
        origins: Origins of web pages that may call the server; `*` for all.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str] = ()) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        await (error_response(refusal) if refusal else self._app)(scope, receive, send)

    def _refusal(self, headers: Headers) -> AdapterHubError | None:
        if not is_loopback(_name(headers.get("host", ""))):
            return InvalidRequestError(
                "This server has no keys, and answers to 127.0.0.1 and localhost only.",
                hint="Call it by these names, or start it with --api-key-file.",
            )
        if not self._is_allowed(headers.get("origin")):
            return PermissionDeniedError(
                "This server has no keys, and web pages of other hosts may not call it.",
                hint="Allow the page's origin with --cors-origin, or start the server with --api-key-file.",
            )
        return None

    def _is_allowed(self, origin: str | None) -> bool:
        """Whether a page may call the server; what is no browser sends no origin."""
        if origin is None or not self._origins.isdisjoint((origin, "*")):
            return True
        return is_loopback(_name(origin.partition("://")[2]))


def _name(host: str) -> str:
    """The host of a header, without its port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
