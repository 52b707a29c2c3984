"""Random bases and adapters of several shapes, for benchmarks whose times do not depend on the weights."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

VOCABULARY = 32000
CONTEXT = 8192
SHAPES = {
    # For trying a command out, and for the tests of the commands.
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "demo": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 5, "num_attention_heads": 4},
    # Of SmolLM2-135M: deep and narrow, with shared keys and a wide output layer.
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "200m": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
    },
    "1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_base(folder: Path, shape: str, device: str = "cpu") -> Path:
    """Writes a random Llama of a shape, with a tokenizer of made-up words, and returns its folder.

    Args:
        folder: Where to.
        shape: One of `SHAPES`.
        device: Where its numbers are drawn; billions of them take long on a CPU.
    """
    config = _config(shape)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    if device != "cpu":
        torch.cuda.empty_cache()
    write_tokenizer(folder, config.vocab_size)
    return folder


def write_tokenizer(folder: Path, size: int = VOCABULARY) -> None:
    """Writes a tokenizer of made-up words."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{n}": n for n in range(3, size)}}
    tokenizer = Tokenizer(BPE(vocab=words, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)


def write_adapter(folder: Path, base: str | Path, *, rank: int, dtype: torch.dtype, seed: int = 0) -> Path:
    """Writes a small random adapter for all seven projections, in PEFT's format, and returns its folder.

    Args:
        folder: Where to.
        base: One of `SHAPES`, or the folder of a Llama.
        rank: Its rank.
        dtype: Of its weights.
        seed: Of the random numbers.
    """
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, (out_features, in_features) in _projections(_config(base)).items():
        a = torch.randn(rank, in_features, generator=random) / in_features**0.5
        b = 0.01 * torch.randn(out_features, rank, generator=random)
        tensors |= {f"{name}.lora_A.weight": a.to(dtype), f"{name}.lora_B.weight": b.to(dtype)}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, task_type="CAUSAL_LM")
    config.base_model_name_or_path = str(base)
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def _config(base: str | Path) -> LlamaConfig:
    """The settings of a shape, or of the Llama in a folder."""
    if base not in SHAPES:
        return LlamaConfig.from_pretrained(base)
    settings = {
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "max_position_embeddings": CONTEXT,
        **SHAPES[str(base)],
    }
    return LlamaConfig(**settings)


def _projections(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Tensor name without its part -> (out_features, in_features)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = (
        heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    attention = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
    attention["o_proj"] = (hidden, queries)
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    return {
        f"base_model.model.model.layers.{layer}.{part}.{target}": size
        for layer in range(config.num_hidden_layers)
        for part, sizes in (("self_attn", attention), ("mlp", mlp))
        for target, size in sizes.items()
    }
