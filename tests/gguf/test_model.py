"""Models written as GGUF: transformers' own reader of the files computes what the models do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from adapterhub.gguf import Architecture
from adapterhub.gguf.model import write_model
from adapterhub.gguf.tokenizer import gguf_tokenizer
from adapterhub.gguf.weights import model_weights
from tests.tiny import make_base

KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "gpt2")
IDS = torch.tensor([[5, 80, 17, 200, 3, 44, 90, 300, 12, 7]])


def written(tmp_path: Path, kind: str = "llama", file_type: str = "f32", **changes: Any) -> tuple[Path, Path]:
    base = make_base(tmp_path / "base", kind, **changes)
    vocab_size = Architecture.of_folder(base).config.vocab_size
    loaded = AutoTokenizer.from_pretrained(base)
    loaded.pad_token = loaded.eos_token
    tokenizer = gguf_tokenizer(loaded, vocab_size)
    file = tmp_path / f"model-{file_type}.gguf"
    write_model(base, file, tokenizer, file_type=file_type)
    return base, file


def logits(folder: Path, **options: Any) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def read_back(file: Path) -> torch.Tensor:
    plain = GgufConfig(dequantize=True)
    return logits(file.parent, gguf_file=file.name, quantization_config=plain)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_is_read_back(tmp_path: Path, kind: str):
    # The reader takes the width of Gemma's heads and the number of GPT-2's positions for granted.
    usual = {"gemma3": {"head_dim": 256}, "gpt2": {"n_positions": 1024}}
    base, file = written(tmp_path, kind, **usual.get(kind, {}))
    torch.testing.assert_close(read_back(file), logits(base), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("file_type", ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_types(tmp_path: Path, file_type: str):
    from gguf import GGUFReader

    base, file = written(tmp_path, "llama", file_type)
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
    assert types["blk.0.attn_q.weight"] == file_type.upper()
    assert types["token_embd.weight"] == ("Q8_0" if file_type.startswith("q") else file_type.upper())
    assert types["output_norm.weight"] == "F32"
    wanted = logits(base)
    error = (read_back(file) - wanted).norm() / wanted.norm()
    assert error < {"f": 2e-3, "b": 2e-2, "q8": 0.03, "q5": 0.2, "q4": 0.3}[
        next(key for key in ("q8", "q5", "q4", "f", "b") if file_type.startswith(key))
    ]  # fmt: skip


def test_weights_that_are_not_read_to_their_end_are_let_go(tmp_path: Path):
    """As where the disk is full."""
    base = make_base(tmp_path / "base")
    for weight in model_weights(base, Architecture.of_folder(base)):
        blocks = weight.blocks()
        assert next(blocks).shape[-1] == weight.shape[-1]
        blocks.close()
