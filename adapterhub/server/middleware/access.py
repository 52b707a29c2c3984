"""Guards every path but those that are open: who sends a request, whether they may, and how many they may send."""

from __future__ import annotations

from contextlib import ExitStack

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from adapterhub.errors import AdapterHubError
from adapterhub.server.access.caller import Caller
from adapterhub.server.access.control import ANONYMOUS, AccessControl
from adapterhub.server.access.errors import AuthenticationError, KeyLimitError, PermissionDeniedError
from adapterhub.server.access.levels import Level, counts, level_of
from adapterhub.server.errors import error_response
from adapterhub.server.middleware.paths import path_of


class AccessMiddleware:
    """Puts the `Caller` into the request's state, or answers 401, 403 or 429.

    Args:
        app: What answers.
        access: The keys.
    """

    def __init__(self, app: ASGIApp, access: AccessControl) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there are none
        else:
            await self._guard(scope, receive, send)

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._access.is_due():
            await run_in_threadpool(self._access.reload_if_changed)
        with ExitStack() as usage:
            try:
                caller = self._admitted(scope)
                if caller.key and counts(scope["method"], level_of(scope["method"], path_of(scope))):
                    usage.enter_context(self._access.limits.request(caller.key))
            except AdapterHubError as error:
                await error_response(error, headers=_headers(error))(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
            await self._app(scope, receive, send)

    def _admitted(self, scope: Scope) -> Caller:
        level, token = level_of(scope["method"], path_of(scope)), _token(Headers(scope=scope))
        caller = self._access.caller(token) or Caller(ANONYMOUS, Level.OPEN)
        is_closed = level > caller.level and (_exists(scope) or caller.level is Level.OPEN)
        if is_closed and caller.key is None:
            raise AuthenticationError(
                "The API key is not known." if token else "This path needs an API key.",
                hint="Send it as `Authorization: Bearer KEY`.",
            )
        if is_closed:
            raise PermissionDeniedError(
                f"The key of {caller.name!r} may not call this path.",
                hint="An admin's key may."
                if level is Level.ADMIN
                else "A key without a list of adapters may.",
            )
        return caller


def _token(headers: Headers) -> str | None:
    """The key that was sent: as OpenAI's clients send it, or in the header `api-key` as Azure's do."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return bearer or headers.get("api-key") or None


def _exists(scope: Scope) -> bool:
    """Whether there is such a path; one that does not exist is a 404 for every key."""
    return any(route.matches(scope)[0] is not Match.NONE for route in scope["app"].router.routes)


def _headers(error: AdapterHubError) -> dict[str, str]:
    if isinstance(error, AuthenticationError):
        return {"www-authenticate": "Bearer"}
    return {"retry-after": str(error.retry_after)} if isinstance(error, KeyLimitError) else {}
