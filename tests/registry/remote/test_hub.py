"""A hub over a registry in a store: what is registered elsewhere is served here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapterhub import AdapterHub, AdapterInvalidError, AdapterNotFoundError, AdapterRegistry
from adapterhub.engine.batching import adapter_loader
from adapterhub.engine.echo import EchoEngine
from adapterhub.lora.request import BlendedLoraRequest, StoredLoraRequest, fetch_files
from adapterhub.peft_format.config import WEIGHTS_FILE
from adapterhub.registry.remote import open_registry, sync_registry
from adapterhub.vllm.adapter_folders import AdapterFolders
from tests.registry.maker import make_adapter
from tests.registry.remote.test_remote_registry import Opener, wait_until


def test_an_adapter_that_is_registered_elsewhere_is_served_here(opened: Opener, adapter: Path):
    elsewhere = opened()
    with AdapterHub(EchoEngine(), opened()) as hub:
        with pytest.raises(AdapterNotFoundError):
            hub.generate("hello", adapter="json")
        elsewhere.register("json", adapter)
        wait_until(lambda: bool(hub.registry.names()))
        answer = hub.generate("hello", adapter="json")
        assert (answer.adapter, answer.version) == ("json", 1)
        elsewhere.register("json", adapter)
        elsewhere.alias("json", "prod", 1)
        wait_until(lambda: hub.generate("hello", adapter="json").version == 2)
        wait_until(lambda: asyncio.run(hub.agenerate("hello", adapter="json@prod")).version == 1)


def test_the_router_follows_the_store(opened: Opener, tmp_path: Path):
    elsewhere = opened()
    texts = {"json": "Write JSON for this order", "sql": "Which customers ordered most?"}
    for seed, (name, example) in enumerate(texts.items()):
        path = make_adapter(tmp_path / name, seed=seed)
        elsewhere.register(name, path, routing={"examples": [example]})
    with AdapterHub(EchoEngine(), opened()) as hub:
        assert hub.route("Which customers ordered most?").scores.keys() >= {"json", "sql"}
        path = make_adapter(tmp_path / "tolk", seed=5)
        elsewhere.register("tolk", path, routing={"examples": ["Mend my zorbex"], "phrases": ["zorbex"]})
        wait_until(lambda: hub.route("a zorbex please").adapter == "tolk")


def test_nothing_is_downloaded_before_weights_are_needed(opened: Opener, adapter: Path, tmp_path: Path):
    opened().register("json", adapter)
    registry = opened(cache=tmp_path / "reader")
    with AdapterHub(EchoEngine(), registry) as hub:
        hub.generate("hello", adapter="json")
    assert not list((tmp_path / "reader").rglob(WEIGHTS_FILE))
    request = StoredLoraRequest.of(registry, registry.get("json"))
    assert not request.folder.exists()
    fetch_files(BlendedLoraRequest.of("blend", [(request, 0.5)]))
    assert (request.folder / WEIGHTS_FILE).is_file()


def test_requests_for_one_version_are_equal(opened: Opener, adapter: Path):
    registry = opened()
    card = registry.register("json", adapter)
    assert StoredLoraRequest.of(registry, card) == StoredLoraRequest(
        card.ref, card.digest, registry.expected_folder(card)
    )


class _Base:
    """What `adapter_loader` asks of a base before it reads weights."""

    model = None
    linear_layers = None
    folder = None


def test_an_engine_loads_no_tampered_weights(opened: Opener, adapter: Path, objects: dict[str, bytes]):
    registry = opened()
    request = StoredLoraRequest.of(registry, registry.register("json", adapter))
    weights = bytearray(objects[f"json/1/{WEIGHTS_FILE}"])
    weights[-1] ^= 1
    objects[f"json/1/{WEIGHTS_FILE}"] = bytes(weights)
    with pytest.raises(AdapterInvalidError, match="not the file that was registered"):
        adapter_loader(_Base())(request)
    assert not request.folder.exists()


def test_a_folder_needs_no_download(tmp_path: Path, adapter: Path):
    registry = AdapterRegistry(tmp_path / "registry")
    request = StoredLoraRequest.of(registry, registry.register("json", adapter))
    fetch_files(request)
    assert request.folder == registry.folder(registry.get("json"))


def test_a_fleet_of_servers_gets_the_files_first(opened: Opener, adapter: Path):
    registry = opened()
    request = StoredLoraRequest.of(registry, registry.register("json", adapter))
    folders = AdapterFolders(registry=registry.root, mounted_at=Path("/mnt/adapters"))
    asyncio.run(folders.fetch(request))
    assert (request.folder / WEIGHTS_FILE).is_file()
    assert folders.on_server(request) == Path("/mnt/adapters/files") / request.folder.name


@pytest.mark.slow  # loads the demo base
def test_from_pretrained_takes_a_url(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path))
    sync_registry(AdapterRegistry("adapters"), open_registry(url), ["json"])
    with AdapterHub.from_pretrained("adapterhub-demo", url, quantization=None) as hub:
        answer = hub.generate("Give the colour of the sky.", adapter="json", max_tokens=4)
    assert (answer.adapter, answer.version) == ("json", 1)
    assert len(list(tmp_path.rglob(WEIGHTS_FILE))) == 1
