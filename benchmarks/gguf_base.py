"""Writes a random Llama of one of the benchmarks' shapes for llama.cpp, in Q4_0.

    python -m benchmarks.gguf_base --shape 200m base.gguf

Needs `gguf` and `llama-cpp-python` (pip install them). It has no vocabulary: it is asked in token ids.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from benchmarks.shapes import SHAPES, VOCABULARY


def write_gguf(file: Path, shape: str) -> None:
    """Writes the base in 16 bits, and has llama.cpp bring it to 4."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "f16.gguf"
        _write(whole, **SHAPES[shape])
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
        if llama_cpp.llama_model_quantize(str(whole).encode(), str(file).encode(), settings):
            raise RuntimeError("llama.cpp could not quantise the base.")


def _write(
    file: Path,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
) -> None:
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden_size)
    writer.add_feed_forward_length(intermediate_size)
    writer.add_block_count(num_hidden_layers)
    writer.add_head_count(num_attention_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    for name, tensor in _tensors(hidden_size, intermediate_size, num_hidden_layers):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(hidden: int, intermediate: int, layers: int) -> Iterator[tuple[str, np.ndarray]]:
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns), np.float32) * 0.02).astype(np.float16)

    norm = np.ones(hidden, np.float32)
    yield "token_embd.weight", matrix(VOCABULARY, hidden)
    yield "output_norm.weight", norm
    for layer in range(layers):
        yield f"blk.{layer}.attn_norm.weight", norm
        yield f"blk.{layer}.ffn_norm.weight", norm
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{layer}.{name}.weight", matrix(hidden, hidden)
        for name in ("ffn_gate", "ffn_up"):
            yield f"blk.{layer}.{name}.weight", matrix(intermediate, hidden)
        yield f"blk.{layer}.ffn_down.weight", matrix(hidden, intermediate)


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="200m")
    args = parser.parse_args()
    write_gguf(args.file, args.shape)


if __name__ == "__main__":
    main()
