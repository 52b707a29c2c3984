"""Without keys, only programs of the machine that Ray's proxy runs on are answered."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from adapterhub.server.access.errors import PermissionDeniedError
from adapterhub.server.errors import error_response
from adapterhub.server.exposure import is_loopback


class LocalClientsMiddleware:
    """Refuses requests from other machines.

    `adapterhub serve` refuses to listen where others could use it without a key. Here Ray listens, so each request is
    looked at.

    Args:
        app: What answers the others.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] != "http" or (client and is_loopback(client[0])):
            await self._app(scope, receive, send)
            return
        refusal = PermissionDeniedError(
            "This application has no keys, and answers programs of its own machine only.",
            hint="Start it with api_key_file=..., or allow it with insecure=true.",
        )
        await error_response(refusal)(scope, receive, send)
