"""Random bases of several shapes, for benchmarks whose times do not depend on the weights."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHAPES = {
    "demo": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 5, "num_attention_heads": 4},
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
}


def write_base(folder: Path, shape: str) -> Path:
    """Writes a random Llama of a shape, with a tokenizer that knows nothing, and returns its folder."""
    config = LlamaConfig(vocab_size=32000, tie_word_embeddings=True, **SHAPES[shape])
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()), eos_token="</s>").save_pretrained(folder)
    return folder
