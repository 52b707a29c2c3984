"""Fixtures of the server's tests: an application on an engine without a model, called in this process."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.server import create_app


@pytest.fixture(scope="module")
def hub(tiny_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterHub]:
    """Answers `[adapter] prompt`, as json, code or support, which are in a registry of its own."""
    registry = shutil.copytree(tiny_registry, tmp_path_factory.mktemp("served") / "registry")
    with AdapterHub(EchoEngine(), AdapterRegistry(registry)) as hub:
        yield hub


@pytest.fixture(scope="package")
def model_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterHub]:
    """A random base of one layer with a random adapter, json, for what needs a tokenizer; tests leave it as it is."""
    from tests.tiny import make_adapter, make_base

    root = tmp_path_factory.mktemp("model")
    base = make_base(root / "base", num_hidden_layers=1, max_position_embeddings=8192)
    with AdapterHub.from_pretrained(base, root / "registry", quantization=None) as hub:
        hub.registry.register("json", make_adapter(root / "json", base), base=base)
        yield hub


@pytest.fixture(scope="module")
def app(hub: AdapterHub) -> FastAPI:
    """The application on that hub, with the default settings."""
    return create_app(hub)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Calls the application in the test's event loop."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client
