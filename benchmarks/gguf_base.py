"""Writes a random Llama of one of the benchmarks' shapes for llama.cpp, in Q4_0.

    python -m benchmarks.gguf_base --shape 200m base.gguf

Needs `gguf` and `llama-cpp-python` (pip install them). It has no vocabulary: it is asked in token ids.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from adapterhub.gguf.architectures import Architecture
from adapterhub.gguf.hyperparameters import hyperparameters
from adapterhub.gguf.model import write_gguf
from adapterhub.gguf.weights import model_weights
from adapterhub.llama_cpp.bindings import library
from benchmarks.shapes import SHAPES, write_base


def write_q4_0(folder: Path, file: Path) -> None:
    """Writes a base for llama.cpp: in 16 bits, which llama.cpp then brings to 4.

    Args:
        folder: The base, in transformers' format.
        file: The new file.
    """
    llama = library()
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        whole, architecture = Path(scratch) / "f16.gguf", Architecture.of_folder(folder)
        fields = {
            "general.type": "model",
            **hyperparameters(architecture),
            "tokenizer.ggml.model": "no_vocab",
        }
        write_gguf(whole, architecture.name, fields, model_weights(folder, architecture), "f16")
        settings = llama.llama_model_quantize_default_params()
        settings.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
        if llama.llama_model_quantize(str(whole).encode(), str(file).encode(), settings):
            raise RuntimeError("llama.cpp could not quantise the base.")


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="200m")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_q4_0(write_base(Path(folder), args.shape), args.file)


if __name__ == "__main__":
    main()
