"""A base in transformers' format as a GGUF file for the engine: written once, and kept in the cache.

The file has no tokenizer: the engine encodes and decodes with the base's own, so that every kind of tokenizer will do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from adapterhub._files import os_errors_as
from adapterhub.base.conversion_cache import converted_folder
from adapterhub.base.fingerprint import weight_files
from adapterhub.config import cache_folder
from adapterhub.errors import ConfigError
from adapterhub.gguf.architectures import Architecture
from adapterhub.gguf.hyperparameters import hyperparameters
from adapterhub.gguf.model import write_gguf
from adapterhub.gguf.weights import model_weights

FileType = Literal["f16", "q8_0"]

_VERSION = 1
_FILE = "model.gguf"


def gguf_of_folder(folder: Path, architecture: Architecture, file_type: FileType) -> Path:
    """The GGUF file of a base, written at its first use; memory holds about a million weights meanwhile.

    Args:
        folder: The base, with safetensors files in 16 or 32 bits.
        architecture: Its architecture.
        file_type: `"f16"`, or `"q8_0"` for half the size, which changes predictions little.

    Raises:
        ConfigError: The base cannot be read, or the file not be written.
        ExportError: llama.cpp does not compute what the model does, or a weight does not fit into the type.
    """
    fields = {
        "general.type": "model",
        **hyperparameters(architecture),
        "tokenizer.ggml.model": "no_vocab",
    }

    def convert(temporary: Path) -> None:
        weights = model_weights(folder, architecture)
        write_gguf(temporary / _FILE, architecture.name, fields, weights, file_type)

    with os_errors_as(ConfigError, f"The base {str(folder)!r} could not be converted to GGUF"):
        cache = cache_folder("llama.cpp") / file_type
        return converted_folder(cache, folder, _files, _VERSION, convert) / _FILE


def _files(folder: Path) -> list[Path]:
    return [folder / "config.json", *weight_files(folder)]
