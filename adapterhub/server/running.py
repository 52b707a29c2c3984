"""Runs the server in this process: opens the port, loads the base meanwhile, and ends without cutting answers off."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from adapterhub.errors import ConfigError
from adapterhub.hub import AdapterHub
from adapterhub.server.access.control import AccessControl
from adapterhub.server.app import create_app
from adapterhub.server.config import ServerConfig
from adapterhub.server.exposure import check_exposure
from adapterhub.server.http_protocol import BoundedHttpProtocol
from adapterhub.server.lifecycle import READY, Lifecycle
from adapterhub.server.loading import LoadingApp
from adapterhub.server.middleware.local_names import LocalNamesMiddleware

_CUT_OFF_SECONDS = 5
"""In which answers that are cut off have to say so."""
_SECONDS_BETWEEN_REPORTS = 5.0
_SWITCH_SECONDS = 0.0005
_OTHER_FILES = 512
"""Files that are no connections: weights, adapters that are being read, logs."""


def serve(
    open_hub: Callable[[], AdapterHub],
    config: ServerConfig,
    report: Callable[[str], None] = lambda _: None,
) -> int:
    """Serves until SIGTERM or SIGINT.

    The port is open while the base loads, and answers 503. After the first signal new requests get 503, and running
    answers have `drain_seconds` to end; at a second one they are cut off at once.

    Args:
        open_hub: Loads the base and opens the registry; called in a thread of its own.
        config: The settings.
        report: Receives a sentence when something has begun or ended, for people.

    Returns:
        How many answers were cut off.

    Raises:
        ConfigError: The settings are not safe, the address cannot be listened on, or the base cannot be loaded.
    """
    has_keys = AccessControl(config.api_key_file, config.admin_key_file).needs_key
    check_exposure(config.host, has_keys=has_keys, insecure=config.insecure)
    lifecycle = Lifecycle("loading the base")
    _raise_file_limit(config.max_connections)
    with sharing_interpreter(), _listen(config) as listening:
        app = LoadingApp(open_hub, partial(create_app, config=config, lifecycle=lifecycle), lifecycle)
        served = app if has_keys or config.insecure else LocalNamesMiddleware(app, config.cors_origins)
        server = _Server(uvicorn_config(served, config), app, lifecycle, config, report)
        report(f"Listening on {_address(listening)}")
        app.start()
        try:
            server.run(sockets=[listening])
        finally:
            app.close()
    if app.error:
        raise app.error
    return server.cut_off


@contextmanager
def sharing_interpreter() -> Iterator[None]:
    """Has threads hand over Python's lock soon, so that the event loop does not wait for the others; for the process.

    Python's default is 5 ms, of each thread that wants the lock. And a step gives it back between operations and takes
    it again before the loop's thread has woken up, which then waits for the whole time anew.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def uvicorn_config(app: ASGIApp, config: ServerConfig) -> uvicorn.Config:
    """uvicorn's settings: our bounds and log lines in place of its own.

    Args:
        app: What answers.
        config: The settings.
    """
    return uvicorn.Config(
        app,
        http=partial(BoundedHttpProtocol, limits=config),  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=config.max_connections,
        timeout_keep_alive=config.keep_alive_seconds,
        timeout_graceful_shutdown=_CUT_OFF_SECONDS,
    )


def _listen(config: ServerConfig) -> socket.socket:
    """Opens the port.

    Raises:
        ConfigError: The address is taken, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=config.max_connections)
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {config.host}, port {config.port}: {error.strerror or error}.",
            hint="If another server has the port, give another one with --port.",
        ) from error


def _raise_file_limit(connections: int) -> None:
    """Lets this process have a file for each connection, which shells often limit to 1024 files, as far as it may."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's server, which goes on answering while it drains.

    Args:
        settings: uvicorn's.
        app: What is served.
        lifecycle: How far it is.
        config: The settings.
        report: As for `serve`.

    Attributes:
        cut_off: How many answers were cut off.
    """

    def __init__(
        self,
        settings: uvicorn.Config,
        app: LoadingApp,
        lifecycle: Lifecycle,
        config: ServerConfig,
        report: Callable[[str], None],
    ) -> None:
        super().__init__(settings)
        self.cut_off = 0
        self._app = app
        self._lifecycle = lifecycle
        self._drain_seconds = config.drain_seconds
        self._drain_until = 0.0
        self._report = report
        self._stage: tuple[str, float] = "", 0.0  # with the time at which it began
        self._next_report = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the drain; a second signal ends it."""
        self._drain_until = 0.0 if self._lifecycle.draining else time.monotonic() + self._drain_seconds
        self._lifecycle.enter("shutting down")

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; uvicorn calls it ten times a second."""
        self._report_stage()
        over = not self._lifecycle.running or time.monotonic() >= self._drain_until
        ends = self._app.error is not None or (self._lifecycle.draining and over)
        return await super().on_tick(counter) or ends

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the connections; answers that still run end with an error."""
        self.cut_off = self._lifecycle.running
        if self.cut_off:
            await asyncio.to_thread(self._app.close_hub)
        await super().shutdown(sockets)

    def _report_stage(self) -> None:
        """Says what goes on when that changes, and again every few seconds until the server is ready."""
        stage, now = self._lifecycle.stage, time.monotonic()
        before, began = self._stage
        if stage == before and (stage == READY or now < self._next_report):
            return
        self._next_report = now + _SECONDS_BETWEEN_REPORTS
        if stage != before:
            self._stage = stage, now
        running = f": {self._lifecycle.running} answers to go" if self._lifecycle.running else ""
        self._report(
            f"{stage.capitalize()}{running}" + (f" ({now - began:.0f} s)" if stage == before else "")
        )
