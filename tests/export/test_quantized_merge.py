"""A merge that is quantised afterwards: bitsandbytes' own weights, what they lose, and nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub.base.loading import load_base
from adapterhub.errors import ExportError
from adapterhub.export import merge_quantized
from adapterhub.export.model_logits import model_logits
from adapterhub.export.verification import TokenSequence, VerificationTexts
from tests.export.test_merge import merge_adapter
from tests.tiny import make_adapter, make_base

TEXTS = VerificationTexts(
    "two texts", (TokenSequence(tuple(range(20, 60))), TokenSequence(tuple(range(90, 120)), start=4))
)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / request.param, request.param, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter") / "plain", base)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_the_weights_are_those_of_the_merged_model_loaded_so(
    quantization: str, tmp_path: Path, base: Path, adapter: Path
):
    report = merge_quantized(base, adapter, tmp_path / "out", quantization, TEXTS, verify=False)
    merge_adapter(base, adapter, tmp_path / "merged")

    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (config["load_in_4bit"], config["load_in_8bit"]) == (quantization == "nf4", quantization == "int8")
    expected = load_base(
        tmp_path / "merged", quantization=quantization, compute_dtype="bfloat16", training=True
    ).model.state_dict()
    actual = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template

    (before, after) = (
        torch.cat(list(model_logits(tmp_path / name, TEXTS.sequences))).log_softmax(-1)
        for name in ("merged", "out")
    )
    loss = report.quantization_loss
    assert loss.kl_divergence == pytest.approx(
        float((before.exp() * (before - after)).sum(-1).mean()), rel=1e-3
    )
    assert loss.kl_divergence > 1e-5
    assert (
        f"({quantization}) afterwards. Compared with the merged model before: {loss}."
        in (tmp_path / "out" / "README.md").read_text()
    )
    lineage = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert lineage["quantization_loss"]["kl_divergence"] == loss.kl_divergence
    assert lineage["size_bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    text = "".join(path.read_text() for path in (tmp_path / "out").glob("*.json"))
    assert str(tmp_path) not in text
    assert not list((tmp_path / "out").glob("*/"))


def test_a_failure_while_it_is_measured_leaves_nothing(tmp_path: Path, base: Path, adapter: Path):
    texts = VerificationTexts("a token that the base lacks", (TokenSequence((1, 2, 10**6)),))
    with pytest.raises(IndexError):
        merge_quantized(base, adapter, tmp_path / "out", "nf4", texts, verify=False)
    assert list(tmp_path.iterdir()) == []


def test_the_disk_needs_room_for_the_merged_model_too(
    tmp_path: Path, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
):
    needed = 2 * (base / "model.safetensors").stat().st_size + 64 * 2**20
    usage = shutil.disk_usage(tmp_path)._replace(free=needed - 1)
    monkeypatch.setattr("adapterhub.export.disk_space.shutil.disk_usage", lambda place: usage)
    with pytest.raises(ExportError, match=f"needs {needed:,} bytes"):
        merge_quantized(base, adapter, tmp_path / "out", "nf4", TEXTS, verify=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused(tmp_path: Path, base: Path, adapter: Path):
    (tmp_path / "mine").touch()
    with pytest.raises(ExportError, match="not empty"):
        merge_quantized(base, adapter, tmp_path, "nf4", TEXTS, verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
