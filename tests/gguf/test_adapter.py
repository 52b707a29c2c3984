"""An adapter as GGUF changes llama.cpp's weights as PEFT changes the model's."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapterhub.errors import AdapterIncompatibleError
from adapterhub.gguf.adapter import read_adapter, write_adapter
from adapterhub.gguf.architectures import Architecture
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.loading import read_deltas_without_base
from adapterhub.lora.module_deltas import EmbeddingDelta
from tests.tiny import ALL_LINEAR, make_adapter, make_base

PATTERNS = {
    "use_rslora": True,
    "rank_pattern": {"q_proj|c_attn": 8, r".*\.1\.mlp\.(up_proj|c_fc)": 5},
    "alpha_pattern": {"q_proj|c_attn": 3},
}


def merged_change(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What PEFT's merge adds to each parameter, by its name in the model."""
    before = {name: one.clone() for name, one in _model(base).state_dict().items()}
    merged = PeftModel.from_pretrained(_model(base), adapter).merge_and_unload()
    changes = {name: one - before[name] for name, one in merged.state_dict().items()}
    return {name: change for name, change in changes.items() if change.abs().max() > 0}


def _model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def in_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp rotates neighbouring rows of a head; transformers its first half with its second."""
    first, second = rows.view(heads, 2, -1, rows.shape[1]).unbind(1)
    return torch.stack([first, second], dim=2).reshape(rows.shape)


def written(folder: Path, base: Path, adapter: Path, **settings: Any) -> tuple[Path, Architecture]:
    architecture, file = Architecture.of_folder(base), folder / "adapter.gguf"
    with file.open("xb") as stream:
        deltas = read_deltas_without_base(adapter, architecture.layers)
        write_adapter(stream, architecture, deltas, **settings)
    return file, architecture


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gpt2", "gemma3"])
@pytest.mark.parametrize("settings", [{}, PATTERNS], ids=["lora", "rslora and patterns"])
def test_its_tensors_are_peft_s_change_in_llama_cpp_s_layout(
    tmp_path: Path, kind: str, settings: dict[str, Any]
):
    base, targets = make_base(tmp_path / "base", kind), ALL_LINEAR[kind]
    if kind == "gemma3":  # it has the same names in its vision tower
        targets = rf".*language_model.*\.({'|'.join(targets)})"
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=targets, **settings)
    file, architecture = written(tmp_path, base, adapter)
    reader, heads = gguf.GGUFReader(file), {"attn_q": 4, "attn_k": 2}
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    tensors = {one.name: torch.from_numpy(one.data.copy()) for one in reader.tensors}
    wanted = merged_change(base, adapter)
    names = {name: architecture.tensor_name(name) for name in wanted}
    assert {f"{one}.lora_{part}" for one in names.values() for part in "ab"} == tensors.keys()
    for name, change in wanted.items():
        stored = change.T if kind == "gpt2" else change
        count = heads.get(str(names[name]).split(".")[2])
        if kind in ("llama", "mistral") and count:
            stored = in_pairs(stored, count)
        a, b = tensors[f"{names[name]}.lora_a"], tensors[f"{names[name]}.lora_b"]
        assert torch.allclose((alpha / len(a) if alpha else 1) * (b @ a), stored, atol=2e-6)


def test_its_metadata_has_what_llama_cpp_asks_for_and_no_path(tmp_path: Path):
    base = make_base(tmp_path / "base")
    file, _ = written(tmp_path, base, make_adapter(tmp_path / "adapter", base), name="json@1", dtype="f16")
    reader = gguf.GGUFReader(file)
    fields = {name: one.contents() for name, one in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": "json@1",
        "general.file_type": 1,
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.0,
    }
    assert {one.tensor_type.name for one in reader.tensors} == {"F16"}


@pytest.mark.parametrize(("dtype", "bound"), [("f32", 0.0), ("f16", 1e-3)])
def test_it_is_read_back_as_it_was(tmp_path: Path, dtype: Any, bound: float):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=ALL_LINEAR["llama"], **PATTERNS)
    file, architecture = written(tmp_path, base, adapter, dtype=dtype)
    wanted, got = read_deltas_without_base(adapter, architecture.layers), read_adapter(file, architecture)
    assert got.keys() == wanted.keys()
    for module, delta in wanted.items():
        assert torch.allclose(got[module].a, delta.a, rtol=bound, atol=bound)
        assert torch.allclose(got[module].b, delta.b, rtol=bound, atol=bound)


def test_dora_and_tied_output_layers_are_refused(tmp_path: Path):
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    architecture = Architecture.of_folder(base)
    a, b = torch.ones(2, 64), torch.ones(320, 2)
    with pytest.raises(AdapterIncompatibleError, match="embedding"):
        write_adapter(BytesIO(), architecture, {"lm_head": LoraDelta(a, b)})
    embedding = EmbeddingDelta(torch.ones(2, 320), torch.ones(64, 2))
    with pytest.raises(AdapterIncompatibleError, match="by more than LoRA on a linear layer"):
        write_adapter(BytesIO(), architecture, {"model.embed_tokens": embedding})
    dora = LoraDelta(a, torch.ones(64, 2), torch.ones(64))
    with pytest.raises(AdapterIncompatibleError, match="DoRA"):
        write_adapter(BytesIO(), architecture, {"model.layers.0.self_attn.q_proj": dora})
