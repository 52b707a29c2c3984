"""Fakes, and engines that are connected to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine.echo import EchoTokenizer
from adapterhub.engine.interface import LoraRequest, Request
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.vllm import ServedBase, VLLMEngine
from tests.fake_vllm import FakeServer, FakeVllm

ECHO = ServedBase("echo", EchoTokenizer(), None, vocabulary_size=0x110000)

Connect = Callable[..., VLLMEngine]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(FakeVllm()) as server:
        yield server


@pytest.fixture
def fake(server: FakeServer) -> FakeVllm:
    return server.fake


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes engines, which are closed at the end, before the fakes end."""
    with ExitStack() as stack:

        def connect(*servers: FakeServer, **settings: Any) -> VLLMEngine:
            engine = VLLMEngine([server.url for server in servers], settings.pop("base", ECHO), **settings)
            stack.callback(engine.close)
            return engine

        yield connect


@pytest.fixture
def engine(server: FakeServer, connect: Connect) -> VLLMEngine:
    return connect(server)


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., StoredLoraRequest]:
    """Makes adapters that the fake loads."""

    def make(name: str = "json@1", digest: str = "ab" * 32, **config: Any) -> StoredLoraRequest:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8} | config))
        return StoredLoraRequest(name, f"sha256:{digest}", folder)

    return make


def request(
    text: str = "hi", adapter: LoraRequest | None = None, *, priority: int = 0, **sampling: Any
) -> Request:
    """A request whose tokens are the characters of a text."""
    return Request(list(map(ord, text)), adapter, SamplingParams(**sampling), priority=priority)
