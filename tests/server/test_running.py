"""A server process: it starts, drains and ends, and loses no answer."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.errors import ConfigError
from adapterhub.server import ServerConfig, running, serve
from adapterhub.server.running import sharing_interpreter
from tests.server.process import serving

pytestmark = pytest.mark.alone  # each process imports all that a server needs
STREAMS = 8
TEXT = "A text of some length, so that its answer takes a while."
LONG_TEXT = "An answer that takes a minute. " * 100


def asked(text: str) -> dict[str, object]:
    messages = [{"role": "user", "content": text}]
    return {"model": "json", "messages": messages, "max_tokens": len(text), "stream": True}


async def with_running_streams(
    url: str, then: Callable[[httpx.AsyncClient], Awaitable[None]], text: str
) -> list[str]:
    """Begins streams, calls something once each has begun, and returns what each has sent at its end."""
    begun = asyncio.Semaphore(0)

    async def read(client: httpx.AsyncClient) -> str:
        received = ""
        async with client.stream("POST", f"{url}/v1/chat/completions", json=asked(text)) as answer:
            async for part in answer.aiter_text():
                if not received:
                    begun.release()
                received += part
        return received

    async with httpx.AsyncClient(timeout=60) as client:
        reading = [asyncio.ensure_future(read(client)) for _ in range(STREAMS)]
        for _ in range(STREAMS):
            await begun.acquire()
        await then(client)
        return await asyncio.gather(*reading)


async def drained(client: httpx.AsyncClient, url: str) -> None:
    """Returns once a server takes no more requests."""
    async with asyncio.timeout(60):
        while (await client.get(f"{url}/ready")).status_code == 200:
            await asyncio.sleep(0.01)


def test_sigterm_loses_no_running_answer(tiny_registry: Path):
    with serving(tiny_registry) as server:
        server.wait_until_ready()

        async def terminate(client: httpx.AsyncClient) -> None:
            server.process.send_signal(signal.SIGTERM)
            await drained(client, server.url)
            refused = await client.post(f"{server.url}/v1/chat/completions", json=asked(TEXT))
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")

        answers = asyncio.run(with_running_streams(server.url, terminate, TEXT))
        assert server.process.wait() == 0
    assert all(answer.endswith("data: [DONE]\n\n") for answer in answers)
    assert {answer.count('"finish_reason":"length"') for answer in answers} == {1}


@pytest.mark.parametrize(("signals", "drain_seconds"), [(1, 0), (2, 60)])
def test_answers_that_are_cut_off_say_so(tiny_registry: Path, signals: int, drain_seconds: float):
    with serving(tiny_registry, drain_seconds=drain_seconds) as server:
        server.wait_until_ready()

        async def terminate(client: httpx.AsyncClient) -> None:
            server.process.send_signal(signal.SIGTERM)
            if signals == 2:  # two that come at once are one
                await drained(client, server.url)
                server.process.send_signal(signal.SIGTERM)

        answers = asyncio.run(with_running_streams(server.url, terminate, LONG_TEXT))
        assert server.process.wait() == 1
    assert all(answer.endswith("data: [DONE]\n\n") for answer in answers)
    assert {answer.count('"code":"overloaded"') for answer in answers} == {1}


def test_the_port_answers_while_the_base_loads(tiny_registry: Path):
    with serving(tiny_registry, before_loading="threading.Event().wait()") as server:
        answers = [httpx.get(server.url + path) for path in ("/health", "/v1/models")]
        assert [answer.status_code for answer in answers] == [503, 503]
        assert "loading the base" in answers[0].json()["error"]["message"]
        assert "retry-after" in answers[0].headers
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait() == 0  # it waits for no base


def test_a_base_that_cannot_be_loaded_ends_the_server(tmp_path: Path):
    def fail() -> AdapterHub:
        raise ConfigError("There is no such base.")

    said: list[str] = []
    with pytest.raises(ConfigError, match="no such base"):
        serve(fail, ServerConfig(port=0), said.append)
    assert said[0].startswith("Listening on http://127.0.0.1:")


def test_a_stage_that_lasts_is_reported_with_its_time_so_far(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(running, "_SECONDS_BETWEEN_REPORTS", 1.0)
    seconds: list[int] = []
    reported_twice = threading.Event()

    def report(text: str) -> None:
        if found := re.fullmatch(r"Loading the base \((\d+) s\)", text):
            seconds.append(int(found[1]))
        if len(seconds) == 2:
            reported_twice.set()

    def fail() -> AdapterHub:
        reported_twice.wait()
        raise ConfigError("There is no such base.")

    with pytest.raises(ConfigError, match="no such base"):
        serve(fail, ServerConfig(port=0), report)
    assert 1 <= seconds[0] < seconds[1]


def test_keys_are_read_before_the_base_is_loaded(tmp_path: Path):
    def open_hub() -> AdapterHub:
        raise AssertionError("the base was loaded")

    with pytest.raises(ConfigError, match="no-such-file"):
        serve(open_hub, ServerConfig(port=0, api_key_file=tmp_path / "no-such-file"))


def test_without_keys_it_has_the_names_of_this_machine_alone(tiny_registry: Path):
    with serving(tiny_registry) as server:
        server.wait_until_ready()
        answer = httpx.get(f"{server.url}/v1/models", headers={"host": "evil.example.org"})
        assert answer.status_code == 400
        assert httpx.get(f"{server.url}/v1/models").status_code == 200


def test_a_port_that_is_taken(tmp_path: Path):
    def open_hub() -> AdapterHub:
        return AdapterHub(EchoEngine(), AdapterRegistry(tmp_path))

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="Cannot listen"):
        serve(open_hub, ServerConfig(port=taken.getsockname()[1]))


def test_threads_hand_over_the_interpreter_sooner_while_it_serves():
    before = sys.getswitchinterval()
    with sharing_interpreter():
        assert sys.getswitchinterval() < before
    assert sys.getswitchinterval() == before
