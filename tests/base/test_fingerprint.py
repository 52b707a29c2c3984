from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.errors import ConfigError
from tests.registry.maker import make_base


def shard(folder: Path) -> None:
    """Splits a base's weights into two files, in another order."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors, reverse=True)
    shards = {name: f"model-{1 + (position % 2)}.safetensors" for position, name in enumerate(names)}
    for file in set(shards.values()):
        save_file({name: tensors[name] for name in names if shards[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def test_a_fingerprint_depends_on_neither_path_nor_shards(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    copy = shutil.copytree(base, tmp_path / "copy")
    (copy / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text()), indent=2))
    shard(copy)
    assert BaseFingerprint.of(base) == BaseFingerprint.of(copy)
    assert BaseFingerprint.of(base).mismatch(BaseFingerprint.of(copy)) is None


def test_the_fields_of_a_fingerprint(tmp_path: Path) -> None:
    fingerprint = BaseFingerprint.of(make_base(tmp_path / "base"))
    assert (fingerprint.architecture, fingerprint.model_type) == ("LlamaForCausalLM", "llama")
    assert (fingerprint.vocab_size, fingerprint.hidden_size, fingerprint.num_hidden_layers) == (32, 8, 2)
    assert BaseFingerprint.model_validate_json(fingerprint.model_dump_json()) == fingerprint


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, "same shape but other weights"),
        ({"layers": 3}, "num_hidden_layers is 3, not 2"),
        ({"vocab_size": 33}, "vocab_size is 33, not 32"),
        (
            {"architectures": ["MistralForCausalLM"]},
            "architecture is MistralForCausalLM, not LlamaForCausalLM",
        ),
        ({"num_attention_heads": 4}, "same shape but other weights"),
    ],
)
def test_another_base_has_another_fingerprint(
    tmp_path: Path, change: dict[str, object], difference: str
) -> None:
    mine, other = make_base(tmp_path / "mine"), make_base(tmp_path / "other", **change)  # type: ignore[arg-type]
    assert difference in str(BaseFingerprint.of(mine).mismatch(BaseFingerprint.of(other)))


@pytest.mark.parametrize("broken", ["nothing", "config", "weights", "escape", "json", "list"])
def test_a_folder_that_is_no_base_is_an_error(tmp_path: Path, broken: str) -> None:
    folder = make_base(tmp_path / "base")
    match broken:
        case "nothing":
            shutil.rmtree(folder)
        case "config":
            (folder / "config.json").unlink()
        case "weights":
            (folder / "model.safetensors").write_bytes(b"no")
        case "escape":
            (folder / "model.safetensors").unlink()
            index = {"weight_map": {"a": "../other/model.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        case "json":
            (folder / "config.json").write_text("{")
        case "list":
            (folder / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="not a base that can be read") as caught:
        BaseFingerprint.of(folder)
    assert caught.value.hint
