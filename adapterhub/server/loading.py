"""Loads the hub behind a port that is open already: until then every request gets 503 with the stage."""

from __future__ import annotations

import threading
from collections.abc import Callable

from fastapi import FastAPI
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from adapterhub.hub import AdapterHub
from adapterhub.server.lifecycle import READY, Lifecycle
from adapterhub.server.warming import make_ready

_RETRY_AFTER_SECONDS = "2"


class LoadingApp:
    """An ASGI application that makes another one in a thread, and hands over to it.

    The port is open from the start, so a probe tells a server that loads from one that is not there.

    Args:
        open_hub: Loads the base and opens the registry.
        make_app: From the hub to the application.
        lifecycle: Where it says how far it is.

    Attributes:
        error: What loading failed with.
    """

    def __init__(
        self,
        open_hub: Callable[[], AdapterHub],
        make_app: Callable[[AdapterHub], FastAPI],
        lifecycle: Lifecycle,
    ) -> None:
        self.error: BaseException | None = None
        self._open_hub = open_hub
        self._make_app = make_app
        self._lifecycle = lifecycle
        self._hub: AdapterHub | None = None
        self._app: FastAPI | None = None
        # A daemon: loading cannot be interrupted, and a shutdown does not wait for it.
        self._thread = threading.Thread(target=self._load, name="adapterhub-load", daemon=True)

    def start(self) -> None:
        """Begins to load."""
        self._thread.start()

    def close_hub(self) -> None:
        """Ends running answers with an error and frees the engine."""
        if self._hub is not None:
            self._hub.close()

    def close(self) -> None:
        """Closes the hub and the application."""
        self.close_hub()
        if self._app is not None:
            self._app.state.server.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._not_ready()(scope, receive, send)

    def _load(self) -> None:
        try:
            self._hub = self._open_hub()
            self._lifecycle.enter("warming up")
            self._app = make_ready(self._hub, self._make_app)
            self._lifecycle.enter(READY)
        except BaseException as error:  # noqa: BLE001  raised again in the thread that serves
            self.error = error

    def _not_ready(self) -> ASGIApp:
        stage, seconds = self._lifecycle.stage, self._lifecycle.seconds
        error = {
            "message": f"The server is {stage}, for {seconds:.0f} s so far.",
            "type": "server_error",
            "param": None,
            "code": "loading",
        }
        return JSONResponse({"error": error}, 503, {"retry-after": _RETRY_AFTER_SECONDS})
