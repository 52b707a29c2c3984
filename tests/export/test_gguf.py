"""Adapters exported as GGUF: what the files compute, what is checked, and that a failed export leaves nothing."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GgufConfig

from adapterhub import AdapterRegistry
from adapterhub.base import demo_base_folder
from adapterhub.base.loading import load_tokenizer
from adapterhub.errors import AdapterHubError, AdapterIncompatibleError, ConfigError, ExportError
from adapterhub.export import LlamaCppCheckout, adapter_folders, export_gguf
from adapterhub.export.llama_cpp_file import has_llama_cpp
from tests.faults import failures
from tests.tiny import CHAT_TEMPLATE, make_adapter, make_base, make_sentencepiece_tokenizer

IDS = torch.arange(3, 43).view(1, -1)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(IDS).logits
    return result


def read(file: Path) -> torch.Tensor:
    """The logits of a file in transformers."""
    plain = GgufConfig(dequantize=True)
    return logits(
        AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=plain
        )
    )


def adapted(base: Path, adapter: Path) -> torch.Tensor:
    """The logits of the adapter on the base in PEFT."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return logits(PeftModel.from_pretrained(model, adapter))


# What transformers' reader takes for granted.
USUAL: dict[str, dict[str, Any]] = {"gemma3": {"head_dim": 256}, "gpt2": {"n_positions": 1024}}


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma3", "gpt2"])
def test_an_adapter_s_file_predicts_as_the_adapter_on_its_base(tmp_path: Path, kind: str):
    base = make_base(tmp_path / "base", kind, **USUAL.get(kind, {}))
    adapter = make_adapter(tmp_path / "adapter", base)
    report = export_gguf(base, adapter, tmp_path / "out", types=["f32"])
    assert [file.file for file in report.files] == ["model-f32.gguf"]
    wanted = adapted(base, adapter)
    assert (wanted - logits(AutoModelForCausalLM.from_pretrained(base))).norm() > 1
    torch.testing.assert_close(read(tmp_path / "out" / "model-f32.gguf"), wanted, rtol=1e-3, atol=1e-3)


def test_types_and_files(tmp_path: Path, tiny_base: Path, tiny_adapters):
    export_gguf(tiny_base, tiny_adapters["json"], tmp_path / "out", types=["Q8_0", "f16", "q8_0"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "Modelfile.f16", "Modelfile.q8_0", "README.md", "gguf.json", "model-f16.gguf", "model-q8_0.gguf",
    ]  # fmt: skip
    assert "FROM ./model-q8_0.gguf" in (tmp_path / "out" / "Modelfile.q8_0").read_text()
    wanted = adapted(tiny_base, tiny_adapters["json"])
    error = (read(tmp_path / "out" / "model-q8_0.gguf") - wanted).norm() / wanted.norm()
    assert 0 < error < 0.03


def test_the_report_says_what_was_checked(tmp_path: Path, tiny_base: Path, tiny_adapters):
    report = export_gguf(tiny_base, tiny_adapters["json"], tmp_path / "out", types=["f16"])
    (file,) = report.files
    assert report.checked_with == ("llama.cpp" if has_llama_cpp() else "transformers")
    assert file.tokens is not None
    assert (file.tokens.texts, file.tokens.different) == (400, 0)
    assert file.verification is not None
    assert 0 <= file.verification.kl_divergence < 1e-3
    assert file.verification.perplexity == pytest.approx(file.verification.reference_perplexity, rel=1e-3)
    assert (file.size_bytes, file.type) == ((tmp_path / "out" / file.file).stat().st_size, "f16")
    stored = json.loads((tmp_path / "out" / "gguf.json").read_text())
    assert stored["files"][0]["sha256"] == file.sha256
    assert stored["adapter_digest"] == report.adapter_digest
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| model-f16.gguf |" in card
    assert str(tmp_path) not in card + json.dumps(stored)


def test_nothing_of_this_machine_is_in_the_file(tmp_path: Path, tiny_base: Path, tiny_adapters):
    from gguf import GGUFReader

    export_gguf(tiny_base, tiny_adapters["json"], tmp_path / "out", verify=False)
    fields = GGUFReader(tmp_path / "out" / "model-f16.gguf").fields
    assert fields["general.name"].contents() == f"{tiny_base.name} json"
    assert fields["general.finetune"].contents() == "json"
    assert str(tmp_path).encode() not in (tmp_path / "out" / "model-f16.gguf").read_bytes()[:50_000]


def test_a_blend_and_the_base_alone(tmp_path: Path, tiny_base: Path, tiny_registry: Path):
    registry = AdapterRegistry(tiny_registry)
    folders = adapter_folders(registry, "json:0.5+code:0.5")
    blend = export_gguf(tiny_base, folders, tmp_path / "blend")
    assert blend.adapter == "code@1:0.5+json@1:0.5"
    alone = export_gguf(tiny_base, None, tmp_path / "alone", types=["f32"])
    assert (alone.adapter, alone.adapter_digest) == (None, None)
    wanted = logits(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32))
    torch.testing.assert_close(read(tmp_path / "alone" / "model-f32.gguf"), wanted, rtol=1e-3, atol=1e-3)


def test_tools_that_ollama_cannot_express_may_be_left_out(tmp_path: Path):
    shown = "{% if tools %}{% for tool in tools %}{{ tool.function.name }}{% endfor %}{% endif %}"
    base = make_base(tmp_path / "base", chat_template=CHAT_TEMPLATE + shown)
    with pytest.raises(ExportError, match="not their JSON") as refused:
        export_gguf(base, None, tmp_path / "with", verify=False)
    assert "--no-modelfile-tools" in (refused.value.hint or "")
    export_gguf(base, None, tmp_path / "without", verify=False, modelfile_tools=False)
    modelfile = (tmp_path / "without" / "Modelfile.f16").read_text(encoding="utf-8")
    assert "<|im_start|>" in modelfile
    assert ".Tools" not in modelfile


def test_a_sentencepiece_tokenizer_without_its_model(tmp_path: Path):
    tokenizer = make_sentencepiece_tokenizer()
    base = make_base(tmp_path / "base", "mistral", vocab_size=len(tokenizer))
    for path in base.glob("*token*"):
        path.unlink()
    tokenizer.save_pretrained(base)
    assert not (base / "tokenizer.model").exists()
    (tmp_path / "blob").write_text("The licence.")
    (base / "LICENSE").symlink_to(tmp_path / "blob")  # as in the hub's cache
    report = export_gguf(base, None, tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "The licence."
    assert report.files[0].tokens is not None
    assert (report.files[0].tokens.texts, report.files[0].tokens.different) == (400, 0)


def test_a_failed_check_leaves_nothing_behind(tmp_path: Path, tiny_base: Path, tiny_adapters, monkeypatch):
    """As a file would that has its rows in transformers' order."""
    monkeypatch.setattr("adapterhub.gguf.architectures.Architecture.row_order", lambda self, name: None)
    with pytest.raises(ExportError, match="does not predict as its reference does"):
        export_gguf(tiny_base, tiny_adapters["json"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    export_gguf(tiny_base, tiny_adapters["json"], tmp_path / "out", verify=False)
    assert (tmp_path / "out" / "model-f16.gguf").is_file()


def test_a_split_that_llama_cpp_has_no_name_for(tmp_path: Path):
    """That of the demo base, in a smaller model."""
    tokenizer = load_tokenizer(demo_base_folder())
    base = make_base(tmp_path / "base", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(base)
    with pytest.raises(ExportError, match="has no name for the way") as caught:
        export_gguf(base, None, tmp_path / "out")
    hint = caught.value.hint or ""
    assert hint.startswith(
        "--pre-tokenizer superbpe takes the nearest, with which 40 of 400 texts become other"
    )
    with pytest.raises(ConfigError, match="no pre-tokenizer 'other'"):
        export_gguf(base, None, tmp_path / "out", pre_tokenizer="other")
    report = export_gguf(base, None, tmp_path / "out", pre_tokenizer="superbpe", types=["bf16"])
    assert report.files[0].tokens is not None
    assert (report.files[0].tokens.texts, report.files[0].tokens.different) == (400, 40)
    assert any("become other tokens" in note for note in report.notes)


def test_what_llama_cpp_does_not_compute_is_refused_before_the_merge(tmp_path: Path):
    base = make_base(tmp_path / "base", hidden_act="relu")
    adapter = make_adapter(tmp_path / "adapter", base)
    told: list[str] = []
    with pytest.raises(ExportError, match="the activation 'relu'"):
        export_gguf(base, adapter, tmp_path / "out", progress=lambda done, total, note: told.append(note))
    assert told == []


def test_the_disk_needs_room_for_what_is_written(tmp_path: Path, tiny_base: Path, tiny_adapters, monkeypatch):
    """In sizes of a base of 16 bits: a merged model takes two, a file of 16 bits one."""
    needed: list[int] = []
    monkeypatch.setattr("adapterhub.export.gguf.check_disk_space", lambda out, size: needed.append(size))
    for number, (adapter, types) in enumerate(
        [(None, ["f16"]), (None, ["q8_0"]), (tiny_adapters["json"], ["f16", "f32"])]
    ):
        export_gguf(tiny_base, adapter, tmp_path / str(number), types=types, verify=False)
    weights = (tiny_base / "model.safetensors").stat().st_size
    assert [size / weights for size in needed] == [1, 2, 5]


@pytest.mark.skipif(has_llama_cpp(), reason="llama-cpp-python is installed")
def test_types_of_llama_cpp_alone_are_refused_before_anything_is_written(tmp_path: Path, tiny_base: Path):
    with pytest.raises(ExportError, match=r"'q4_k_m' is computed by llama\.cpp") as caught:
        export_gguf(tiny_base, None, tmp_path / "out", types=["f16", "q4_k_m"])
    assert "adapterhub[llama]" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


def test_wrong_input(tmp_path: Path, tiny_base: Path, tiny_adapters):
    with pytest.raises(ConfigError, match="no GGUF type 'f17'"):
        export_gguf(tiny_base, None, tmp_path / "out", types=["f17"])
    with pytest.raises(ExportError, match="No type"):
        export_gguf(tiny_base, None, tmp_path / "out", types=[])
    other = make_base(tmp_path / "other", hidden_size=32)
    with pytest.raises(AdapterIncompatibleError):
        export_gguf(other, tiny_adapters["json"], tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ExportError, match="is not empty"):
        export_gguf(tiny_base, None, tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "other"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, tiny_base: Path):
    """The merge before the files has a test of its own."""

    def export() -> None:
        export_gguf(tiny_base, None, tmp_path / "out", verify=False, modelfiles=False)

    raised = list(
        failures(export, errno.ENOSPC, clean=lambda: shutil.rmtree(tmp_path / "out", ignore_errors=True))
    )
    assert len(raised) > 5
    assert all(isinstance(error, AdapterHubError) for error in raised)
    assert list(tmp_path.iterdir()) == []


CONVERTER = """
import pathlib, shutil, sys
out = pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1])
assert sys.argv[sys.argv.index("--outtype") + 1] == "f16", "only f16"
shutil.copyfile(pathlib.Path(__file__).with_name("converted.gguf"), out)
"""


def test_a_checkout_of_llama_cpp_writes_other_architectures(tmp_path: Path, tiny_base: Path, tiny_adapters):
    """A stand-in for its converter, which writes what we would."""
    export_gguf(tiny_base, tiny_adapters["json"], tmp_path / "ours", verify=False, modelfiles=False)
    checkout = tmp_path / "llama.cpp"
    checkout.mkdir()
    with pytest.raises(ConfigError, match="is no checkout of llama"):
        LlamaCppCheckout.of(checkout)
    shutil.copyfile(tmp_path / "ours" / "model-f16.gguf", checkout / "converted.gguf")
    (checkout / "convert_hf_to_gguf.py").write_text(CONVERTER)
    programs = LlamaCppCheckout.of(checkout)
    report = export_gguf(tiny_base, tiny_adapters["json"], tmp_path / "out", checkout=programs)
    assert report.files[0].verification is not None
    assert report.files[0].verification.kl_divergence < 1e-3
    assert (tmp_path / "out" / "Modelfile.f16").is_file()
    with pytest.raises(ExportError, match="only f16") as caught:
        export_gguf(tiny_base, None, tmp_path / "other", types=["f32"], checkout=programs)
    assert "requirements" in (caught.value.hint or "")
    with pytest.raises(ExportError, match="does not predict"):  # the base alone is not the adapter's file
        export_gguf(tiny_base, None, tmp_path / "other", checkout=programs)
    assert not (tmp_path / "other").exists()
