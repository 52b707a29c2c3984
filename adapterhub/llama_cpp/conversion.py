"""A base in transformers' format as a GGUF file for the engine: written once, and kept in the cache.

The file has no tokenizer: the engine encodes and decodes with the base's own, so that every kind of tokenizer will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from adapterhub._files import os_errors_as
from adapterhub.base.conversion_cache import converted_folder
from adapterhub.base.fingerprint import weight_files, weight_tensors
from adapterhub.config import cache_folder
from adapterhub.errors import ConfigError
from adapterhub.gguf.architectures import Architecture
from adapterhub.gguf.hyperparameters import hyperparameters
from adapterhub.gguf.model import write_gguf
from adapterhub.gguf.weights import Weight, model_weights

FileType = Literal["f16", "q8_0"]

_VERSION = 2
"""Counts changes of what is written, so that an older form is not used."""
_FILE = "model.gguf"


def gguf_of_folder(folder: Path, architecture: Architecture, file_type: FileType) -> Path:
    """The GGUF file of a base, written at its first use; memory holds about a million weights meanwhile.

    On a terminal a bar shows how far it is.

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
        weights = _for_short_texts(model_weights(folder, architecture))
        with _bar("Converting to GGUF") as show:
            write_gguf(temporary / _FILE, architecture.name, fields, weights, file_type, show)

    weight_tensors(folder)  # says what is wrong with a damaged base
    with os_errors_as(ConfigError, f"The base {str(folder)!r} could not be converted to GGUF"):
        cache = cache_folder("llama.cpp") / file_type
        return converted_folder(cache, folder, _files, _VERSION, convert) / _FILE


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while the block runs; it shows what is done and in total."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _for_short_texts(weights: Sequence[Weight]) -> list[Weight]:
    """The weights with the rotary factors of short texts for long ones too.

    llama.cpp takes those of long texts for any text where its context, here that of all sequences together, is long.
    No sequence is: `context_length` is where transformers would change the factors.
    """
    by_name = {weight.name: weight for weight in weights}
    if short := by_name.get("rope_factors_short.weight"):
        by_name["rope_factors_long.weight"] = replace(short, name="rope_factors_long.weight")
    return list(by_name.values())


def _files(folder: Path) -> list[Path]:
    return [folder / "config.json", *weight_files(folder)]
