"""What HTTP costs: the server beside the hub in the same process, in turns, for many clients and for one.

    python -m benchmarks.server --rounds 6
    python -m benchmarks.server --model echo --rounds 6
    python -m benchmarks.server --model SmolLM2-135M-Instruct.Q4_1.gguf --shape smollm2 --rounds 6

`hub` is a task for each client in one event loop; `server` is the same requests over HTTP, sent by a second process, so
that with `--clock cpu` what clients cost does not count. The echo engine takes 10 ms a token and hardly any processor
time, as a GPU does; the demo's base takes what its steps take. Another base has the adapters of a registry, or random
ones that fit its shape. No two requests have the same text.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, cast
from urllib.parse import urlsplit

import torch
import uvicorn

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.demo import demo_registry_folder
from adapterhub.server import ServerConfig, create_app
from adapterhub.server.running import sharing_interpreter, uvicorn_config
from benchmarks.common import interleaved, parser, report, settle
from benchmarks.output import progress, table
from benchmarks.shapes import write_adapter

ADAPTERS = ("json", "code", "support", "tools")
ECHO_TOKEN_SECONDS = 0.01


class Side(Protocol):
    """One way to ask for answers."""

    def __call__(self, clients: int, tokens: int, *, stream: bool) -> list[float]:
        """Asks for an answer for each client at once; returns the seconds to each one's first text."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    options = _options().parse_args(arguments)
    if options.client:
        asyncio.run(_client(options.client))
        return
    settle(options)
    with (
        sharing_interpreter(),  # as `adapterhub serve` does; for both sides
        _hub(options) as hub,
        _serve(hub, options.stream_interval) as url,
        _over_http(url, _adapters(hub)) as server,
    ):
        sides = {"hub": _HubSide(hub), "server": server}
        throughput = [_throughput(sides, options, stream=stream) for stream in (False, True)]
        first = _first_text(sides, options)
    found = {"throughput": throughput, "first_text": first}
    report(options, found, lambda: _show(throughput, first))


def _options() -> argparse.ArgumentParser:
    options = parser(__doc__)
    options.add_argument(
        "--model",
        "--engine",
        metavar="BASE",
        default="demo",
        help="demo, echo, or a base: a folder or a GGUF file [demo]",
    )
    options.add_argument(
        "--registry", metavar="FOLDER", help="adapters of the base; random ones of --shape if not given"
    )
    options.add_argument("--clients", type=int, default=32)
    options.add_argument("--tokens", type=int, default=64, help="of each answer")
    options.add_argument("--singles", type=int, default=20, help="requests of a single client")
    options.add_argument(
        "--stream-interval", type=int, default=1, help="tokens of a chunk of the server's streams"
    )
    options.add_argument("--client", metavar="URL", help=argparse.SUPPRESS)
    return options


def _throughput(sides: dict[str, Side], options: argparse.Namespace, *, stream: bool) -> dict[str, Any]:
    progress(f"{options.clients} clients, {'streamed' if stream else 'whole'} answers")
    asking = {
        name: lambda side=side: side(options.clients, options.tokens, stream=stream)
        for name, side in sides.items()
    }
    times = interleaved(asking, options)
    tokens = options.clients * options.tokens
    return {
        "answers": "streamed" if stream else "whole",
        "tokens_per_second": {name: tokens / statistics.median(taken) for name, taken in times.items()},
        # The least of each: what else the machine does only ever adds.
        "overhead": min(times["server"]) / min(times["hub"]) - 1,
    }


def _first_text(sides: dict[str, Side], options: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds from asking to the first text, for one client."""
    progress("one client")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.singles):
        for name, side in sides.items():
            seconds[name] += side(1, 2, stream=True)
    return {name: 1000 * statistics.median(taken) for name, taken in seconds.items()}


def _show(throughput: Sequence[dict[str, Any]], first: dict[str, float]) -> None:
    rows = [[one["answers"], *one["tokens_per_second"].values(), 100 * one["overhead"]] for one in throughput]
    table(["answers", "hub tokens/s", "server tokens/s", "overhead %"], rows)
    difference = first["server"] - first["hub"]
    table(
        ["first text", "hub ms", "server ms", "difference ms"], [["one client", *first.values(), difference]]
    )


# The hub


@contextmanager
def _hub(options: argparse.Namespace) -> Iterator[AdapterHub]:
    with tempfile.TemporaryDirectory() as scratch:
        if options.model == "echo":
            engine = EchoEngine(token_seconds=ECHO_TOKEN_SECONDS)
            hub = AdapterHub(engine, AdapterRegistry(demo_registry_folder()))
        elif options.model == "demo":
            hub = AdapterHub.from_pretrained("adapterhub-demo", demo_registry_folder())
        else:
            registry = options.registry or _random_registry(options, Path(scratch))
            quantization = None if options.quantization == "none" else options.quantization
            hub = AdapterHub.from_pretrained(options.model, registry, quantization=quantization)
        with hub:
            yield hub


def _random_registry(options: argparse.Namespace, scratch: Path) -> Path:
    """A registry of random adapters that fit a base of the shape, under the names of the demo's."""
    registry = AdapterRegistry(scratch / "registry")
    for seed, name in enumerate(ADAPTERS):
        dtype = getattr(torch, options.adapter_dtype or "float32")
        folder = write_adapter(scratch / name, options.shape, rank=options.rank, dtype=dtype, seed=seed)
        registry.register(name, folder, base=options.model)
    return registry.root


def _adapters(hub: AdapterHub) -> Sequence[str]:
    """The adapters that requests name in turn: the demo's, or those of another registry."""
    names = list(dict.fromkeys(card.name for card in hub.registry.list()))
    return ADAPTERS if set(ADAPTERS) <= set(names) else names


_numbers = itertools.count()


def _request(number: int, tokens: int, adapters: Sequence[str]) -> dict[str, Any]:
    """The fields of one request, of which the last are options of the hub and fields of the body alike."""
    text = f"Request {number}: tell me all that there is to say about printers, please, and at length."
    messages = [{"role": "user", "content": text}]
    return {"messages": messages, "model": adapters[number % len(adapters)], "max_tokens": tokens}


class _HubSide:
    def __init__(self, hub: AdapterHub) -> None:
        self._hub, self._adapters = hub, _adapters(hub)

    def __call__(self, clients: int, tokens: int, *, stream: bool) -> list[float]:
        async def ask_all() -> list[float]:
            return list(
                await asyncio.gather(*(self._ask(next(_numbers), tokens, stream) for _ in range(clients)))
            )

        return asyncio.run(ask_all())

    async def _ask(self, number: int, tokens: int, stream: bool) -> float:
        request, started, first = _request(number, tokens, self._adapters), time.perf_counter(), 0.0
        asked = {"max_tokens": request["max_tokens"], "ignore_eos": True}
        if not stream:
            await self._hub.agenerate(request["messages"], request["model"], **asked)
            return time.perf_counter() - started
        async with self._hub.astream(request["messages"], request["model"], **asked) as texts:
            async for _ in texts:
                first = first or time.perf_counter() - started
        return first


# The server


@contextmanager
def _serve(hub: AdapterHub, stream_interval: int) -> Iterator[str]:
    config = ServerConfig(access_log=False, stream_interval=stream_interval)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn_config(create_app(hub, config), config))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def _over_http(url: str, adapters: Sequence[str]) -> Iterator[Side]:
    command = [sys.executable, "-m", "benchmarks.server", "--client", url]
    with subprocess.Popen(  # noqa: S603  this module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        requests_to, answers = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)

        def ask(clients: int, tokens: int, *, stream: bool) -> list[float]:
            requests = [
                {**_request(next(_numbers), tokens, adapters), "ignore_eos": True, "stream": stream}
                for _ in range(clients)
            ]
            print(json.dumps(requests), file=requests_to, flush=True)
            return json.loads(answers.readline())

        yield ask
        requests_to.close()


# The process of the clients


async def _client(url: str) -> None:
    """Sends each line's requests at once, over connections that stay open; prints the seconds to each first text."""
    connections: list[_Connection] = []
    for line in sys.stdin:
        requests = json.loads(line)
        while len(connections) < len(requests):
            connections.append(await _Connection.open(url))
        asking = (connection.ask(request) for connection, request in zip(connections, requests, strict=False))
        print(json.dumps(await asyncio.gather(*asking)), flush=True)


class _Connection:
    """A client that does as little as one can: what it costs would be taken for the server's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, url: str) -> _Connection:
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port))

    async def ask(self, request: dict[str, Any]) -> float:
        body = json.dumps(request).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        started = time.perf_counter()
        self._writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        headers = await self._reader.readuntil(b"\r\n\r\n")
        if not headers.startswith(b"HTTP/1.1 200"):
            raise SystemExit(headers.decode())
        if not request["stream"]:
            length = next(line for line in headers.split(b"\r\n") if line.startswith(b"content-length:"))
            await self._reader.readexactly(int(length.split(b":")[1]))
            return time.perf_counter() - started
        first = 0.0
        received = b""
        while not received.endswith(b"\r\n0\r\n\r\n"):  # the last, empty chunk
            received = received[-8:] + await self._reader.read(1 << 16)
            if not first and b"data:" in received:
                first = time.perf_counter() - started
        return first


if __name__ == "__main__":
    main()
