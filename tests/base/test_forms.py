"""The forms that a base comes in: a hub cache, shards, pickles, files that other libraries quantised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoConfig, AutoModelForCausalLM

from adapterhub.base import BaseFingerprint, load_base, locate_base
from adapterhub.base.describing import describe_base
from adapterhub.cli.main import cli
from adapterhub.errors import ConfigError
from tests.tiny import make_base, make_gguf
from tests.vision import make_vision_base

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("plain") / "base")


@pytest.fixture
def sharded(plain: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(plain, tmp_path / "sharded"))
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(plain).save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def test_a_sharded_base_is_the_one_in_a_single_file(plain: Path, sharded: Path):
    assert BaseFingerprint.of(sharded).digest == BaseFingerprint.of(plain).digest
    models = [load_base(one, quantization=None, device="cpu").model for one in (plain, sharded)]
    assert torch.equal(*(model(input_ids=IDS).logits for model in models))


@pytest.mark.parametrize("revision", [None, "main", "v1", COMMIT])
def test_a_snapshot_in_the_hub_cache_is_loaded_without_network(
    sharded: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
):
    repository = tmp_path / "hub" / "models--organisation--base"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(COMMIT)
    shutil.copytree(sharded, repository / "blobs")
    for blob in (repository / "blobs").iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    base = load_base("organisation/base", quantization=None, device="cpu", revision=revision)
    assert (base.name, base.folder) == ("organisation/base", snapshot)
    assert base.fingerprint.digest == BaseFingerprint.of(plain).digest
    with pytest.raises(ConfigError, match="could not be downloaded"):
        locate_base("organisation/base", revision="v2")


def test_a_missing_shard_is_named(sharded: Path):
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(ConfigError, match="is not a base that can be read"):
        load_base(sharded)


def to_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def quantised(method: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": method, "bits": 4}
        (folder / "config.json").write_text(json.dumps(config))

    return change


REFUSED = {
    "pickle": (to_pickle, "a pickle, 'pytorch_model.bin', which is never opened", "save_pretrained"),
    "no weights": (without_weights, "it has no safetensors", "model.safetensors"),
    **{
        method: (quantised(method), f"quantised by '{method}', which is not read", "16-bit weights")
        for method in ("gptq", "awq", "compressed-tensors")
    },
}


@pytest.mark.parametrize("form", REFUSED)
def test_other_forms_are_refused_before_anything_is_loaded(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
):
    change, message, hint = REFUSED[form]
    folder = Path(shutil.copytree(plain, tmp_path / "base"))
    change(folder)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("it loaded"))
    with pytest.raises(ConfigError, match=message) as caught:
        load_base(folder, quantization=None)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("t5gemma2", "it is an encoder-decoder"),
        ("clip", "transformers has no language model of type 'clip'"),
    ],
)
def test_what_is_no_decoder_is_refused_before_anything_is_loaded(
    plain: Path, tmp_path: Path, kind: str, reason: str
):
    folder = Path(shutil.copytree(plain, tmp_path / "base"))
    AutoConfig.for_model(kind).save_pretrained(folder)
    with pytest.raises(ConfigError, match=f"cannot be a base: {reason}"):
        load_base(folder, quantization=None)


def test_a_gguf_file_answers_on_the_command_line(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    file = make_gguf(tmp_path / "tiny.Q8_0.gguf", plain, quantization="Q8_0")
    options = ["run", "base", "one two", "--registry", str(tmp_path / "registry"), "--max-tokens", "6"]
    answers = [
        CliRunner().invoke(cli, [*options, "--base", str(base), "--json"])
        for base in (file, locate_base(file))
    ]
    assert [one.exit_code for one in answers] == [0, 0], answers[0].output
    texts = [json.loads(one.stdout)["text"] for one in answers]
    assert texts[0] == texts[1] != ""


def test_a_base_is_described(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    file = make_gguf(tmp_path / "tiny.gguf", plain)
    vision = make_vision_base(tmp_path / "vision", "qwen2_5_vl")
    bits = load_base(plain, quantization="int8", compute_dtype="bfloat16", device="cpu", training=True)
    for part in (bits.model, bits.tokenizer):
        part.save_pretrained(tmp_path / "int8")
    assert [describe_base(one) for one in (plain, file, vision, tmp_path / "int8")] == [
        "LlamaForCausalLM",
        "LlamaForCausalLM, a GGUF file in its 16-bit form",
        "Qwen2_5_VLForConditionalGeneration, the text part of a checkpoint with more",
        "LlamaForCausalLM, stored in int8",
    ]
    shown = CliRunner().invoke(cli, ["doctor", "--base", str(file), "--json"])
    assert json.loads(shown.stdout)["kind"] == "LlamaForCausalLM, a GGUF file in its 16-bit form"
