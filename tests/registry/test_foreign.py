"""What is no PEFT adapter is named, with a next command that works."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from adapterhub.errors import (
    AdapterHubError,
    AdapterIncompatibleError,
    AdapterInvalidError,
    InvalidRequestError,
)
from adapterhub.registry import AdapterRegistry
from tests.registry.maker import make_base

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 123456\n"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def refused(registry: AdapterRegistry, path: Path, **options: object) -> AdapterHubError:
    with pytest.raises(AdapterHubError) as caught:
        registry.register("a", path, **options)
    assert caught.value.hint
    assert registry.list() == []
    return caught.value


def run_hint(error: AdapterHubError, folder: Path) -> None:
    """Runs the Python command of a hint in a folder."""
    command = shlex.split(str(error.hint)[str(error.hint).index("python -c") :])
    subprocess.run([sys.executable, *command[1:]], cwd=folder, check=True)


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG, "tokenizer.json"])
def test_git_lfs_pointers(registry: AdapterRegistry, adapter: Path, file: str) -> None:
    (adapter / file).write_bytes(POINTER)
    error = refused(registry, adapter)
    assert f"{file} is a Git-LFS pointer" in error.message
    assert "git lfs pull" in str(error.hint)


def test_a_base_of_git_lfs_pointers(registry: AdapterRegistry, adapter: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    (base / "model.safetensors").write_bytes(POINTER)
    assert "model.safetensors is a Git-LFS pointer" in refused(registry, adapter, base=base).message


def test_shards_can_be_joined(registry: AdapterRegistry, adapter: Path) -> None:
    whole = load_file(adapter / WEIGHTS)
    names = sorted(whole)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        save_file(
            {name: whole[name] for name in part}, adapter / f"adapter_model-0000{number}-of-00002.safetensors"
        )
    (adapter / WEIGHTS).unlink()
    error = refused(registry, adapter)
    assert "its weights are in shards" in error.message
    run_hint(error, adapter)
    assert registry.register("a", adapter).version == 1


LIVE = {
    "the adapter's name": lambda name: name.replace(".weight", ".default.weight"),
    "no prefix": lambda name: name.removeprefix("base_model.model."),
    "both": lambda name: name.removeprefix("base_model.model.").replace(".weight", ".my_lora.weight"),
}


@pytest.mark.parametrize("rename", LIVE.values(), ids=LIVE)
def test_tensors_of_a_live_model_can_be_renamed(registry: AdapterRegistry, adapter: Path, rename) -> None:
    right = load_file(adapter / WEIGHTS)
    save_file({rename(name): tensor for name, tensor in right.items()}, adapter / WEIGHTS)
    error = refused(registry, adapter)
    assert isinstance(error, AdapterIncompatibleError)
    assert ("live model" in error.message) == (rename is not LIVE["no prefix"])
    assert ("without PEFT's prefix" in error.message) == (rename is LIVE["no prefix"])
    run_hint(error, adapter)
    assert load_file(adapter / WEIGHTS).keys() == right.keys()
    assert registry.register("a", adapter).version == 1


@pytest.mark.parametrize(
    ("files", "message", "hint"),
    [
        (["adapters.safetensors", CONFIG], "adapter of mlx-lm", "mlx_lm.fuse --model"),
        (["pytorch_lora_weights.safetensors"], "diffusers", "language model"),
        (["lora.gguf"], "GGUF", "converted from"),
        (["config.json", "model.safetensors"], "whole model", "adapterhub run base TEXT --base"),
        (
            ["config.json", "model-00001-of-00002.safetensors"],
            "whole model",
            "adapterhub run base TEXT --base",
        ),
        ([WEIGHTS], f"{CONFIG} is missing", "same training run"),
        ([], f"holds no {CONFIG}", "save_pretrained"),
        ([CONFIG], f"no {WEIGHTS}", "Copy it there"),
    ],
    ids=lambda one: one if isinstance(one, str) else None,
)
def test_other_formats(
    registry: AdapterRegistry, tmp_path: Path, files: list[str], message: str, hint: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    error = refused(registry, folder)
    assert isinstance(error, AdapterInvalidError)
    assert message in error.message
    assert hint in str(error.hint)


def test_a_file_in_place_of_its_folder(registry: AdapterRegistry, adapter: Path) -> None:
    error = refused(registry, adapter / WEIGHTS)
    assert isinstance(error, InvalidRequestError)
    assert repr(str(adapter)) in str(error.hint)


def test_a_config_without_a_rank_has_pefts(registry: AdapterRegistry, adapter: Path, tmp_path: Path) -> None:
    from tests.registry.maker import make_adapter

    other = make_adapter(tmp_path / "rank-8", r=8)
    config = json.loads((other / CONFIG).read_text())
    del config["r"], config["lora_alpha"]
    (other / CONFIG).write_text(json.dumps(config))
    card = registry.register("a", other)
    assert (card.peft.r, card.peft.lora_alpha) == (8, 8)
