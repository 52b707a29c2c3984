"""Files of a registry that change after registration are never served, blended or merged under their old digest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub import AdapterHub, AdapterInvalidError, AdapterRegistry
from adapterhub.export import merge_adapter
from adapterhub.lora import digest_check
from adapterhub.lora.blending import blend_adapters
from adapterhub.lora.digest_check import DigestCheck
from adapterhub.lora.request import BlendedLoraRequest, StoredLoraRequest

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def registry(tmp_path: Path, tiny_registry: Path) -> AdapterRegistry:
    shutil.copytree(tiny_registry, tmp_path / "registry")
    return AdapterRegistry(tmp_path / "registry")


def stored(registry: AdapterRegistry, name: str) -> StoredLoraRequest:
    card = registry.resolve(name)
    return StoredLoraRequest(card.ref, card.digest, registry.folder(card))


def flip_a_bit(folder: Path) -> None:
    """In place, and with the old times."""
    path = folder / WEIGHTS
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        last = file.read(1)
        file.seek(-3, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def double_alpha(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_bytes())
    config["lora_alpha"] *= 2
    (folder / CONFIG).write_text(json.dumps(config))


def swap_files(folder: Path) -> None:
    """By a rename, so that the inode changes: the files of another adapter."""
    other = folder.parents[1] / "support" / "1"
    for file in (WEIGHTS, CONFIG):
        shutil.copy2(other / file, folder / f"new-{file}")
        (folder / f"new-{file}").replace(folder / file)


CHANGES = pytest.mark.parametrize("change", [flip_a_bit, double_alpha, swap_files])


@CHANGES
def test_changed_files_are_not_served(registry, tiny_base: Path, change: Callable[[Path], None]):
    with AdapterHub.from_pretrained(tiny_base, registry.root, quantization=None, kv_cache_mib=16) as hub:
        wanted = hub.generate("Hi", "json", max_tokens=4).text
        change(registry.folder(registry.resolve("json")))
        # What is in memory is what was registered.
        assert hub.generate("Hi", "json", max_tokens=4).text == wanted
        hub.unload("json")
        for adapter in ("json", "json:0.5+code:0.5"):
            with pytest.raises(AdapterInvalidError, match="json@1 have changed since they were registered"):
                hub.generate("Hi", adapter, max_tokens=4)
        assert hub.generate("Hi", "code", max_tokens=4).adapter == "code"
    assert [problem.ref for problem in registry.verify()] == ["json@1"]


@CHANGES
def test_changed_files_are_neither_blended_nor_merged(registry, tiny_base: Path, tmp_path: Path, change):
    folder = registry.folder(registry.resolve("json"))
    change(folder)
    for weights in ("json:0.5+code:0.5", "json"):
        with pytest.raises(AdapterInvalidError, match="json@1 have changed"):
            blend_adapters(registry, "blend", weights)
    with pytest.raises(AdapterInvalidError, match="json@1 have changed"):
        merge_adapter(tiny_base, folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert [card.name for card in registry.list()] == ["code", "json", "support"]


def test_unchanged_files_are_hashed_once(registry, monkeypatch: pytest.MonkeyPatch):
    hashed: list[Path] = []
    real = digest_check.adapter_digest
    monkeypatch.setattr(
        digest_check,
        "adapter_digest",
        lambda settings, weights: hashed.append(weights) or real(settings, weights),
    )
    check, json_adapter, code = DigestCheck(), stored(registry, "json"), stored(registry, "code")
    for _ in range(3):
        check(json_adapter)
        check(BlendedLoraRequest.of("blend", [(json_adapter, 0.5), (code, 0.5)]))
    assert hashed == [json_adapter.folder / WEIGHTS, code.folder / WEIGHTS]
    os.utime(json_adapter.folder / WEIGHTS)
    check(json_adapter)
    assert len(hashed) == 3


def test_files_that_are_gone(registry):
    adapter = stored(registry, "json")
    check = DigestCheck()
    check(adapter)
    (adapter.folder / WEIGHTS).unlink()
    with pytest.raises(AdapterInvalidError, match=r"adapter_model\.safetensors cannot be read"):
        check(adapter)
