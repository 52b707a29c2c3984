"""A headless Chromium, and pages in it that may neither log an error nor ask another host for anything."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from fastapi import FastAPI

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of one module only: where it is open, the thread has an event loop that other tests must not find."""
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of an app that is served in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def watched_page(
    browser: Browser, address: str, *, expected: str | None = None, **options: Any
) -> Iterator[Page]:
    """Opens an address in a fresh context.

    Args:
        browser: The browser.
        address: The address.
        expected: A part of the errors that the browser is to log, such as `"status of 404"`.
        **options: Of the context, such as `color_scheme`.
    """
    problems: list[str] = []
    origin = address[: address.index("/", len("http://"))]

    def logged(message: Any) -> None:
        if message.type in ("error", "warning") and not (expected and expected in message.text):
            problems.append(f"{message.type}: {message.text}")

    with browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options}) as context:
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", logged)
        page.on("pageerror", lambda error: problems.append(f"uncaught: {error}"))
        page.on("request", lambda asked: asked.url.startswith(origin) or problems.append(asked.url))
        page.goto(address)
        yield page
    assert problems == []
