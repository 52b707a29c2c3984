"""A server on a real socket, for tests whose point is the connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from adapterhub.server import ServerConfig
from adapterhub.server.running import uvicorn_config


@contextmanager
def live(app: ASGIApp, config: ServerConfig | None = None) -> Iterator[str]:
    """Serves an application on a free port of the loopback interface; yields its URL.

    Args:
        app: What answers.
        config: Its bounds.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        server = uvicorn.Server(uvicorn_config(app, config or ServerConfig()))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="test-server")
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
