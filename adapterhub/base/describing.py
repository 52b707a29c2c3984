"""What kind of base a name stands for, in words."""

from __future__ import annotations

from pathlib import Path

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.base.locating import locate_base
from adapterhub.base.stored_quantization import stored_quantization
from adapterhub.config import cache_folder

_CONVERTED = {"gguf": "a GGUF file in its 16-bit form", "dequantized": "fp8 or mxfp4 in its 16-bit form"}


def describe_base(name: str | Path) -> str:
    """The model class of a base, and what is special about its files.

    Args:
        name: As in `locate_base`.

    Raises:
        ConfigError: As `locate_base`, or the base cannot be read.
    """
    folder = locate_base(name)
    layers, quantization = LinearLayers.of_folder(folder), stored_quantization(folder)
    traits = [
        "the text part of a checkpoint with more" if layers and layers.beside else None,
        next((kind for form, kind in _CONVERTED.items() if folder.is_relative_to(cache_folder(form))), None),
        f"stored in {quantization}" if quantization else None,
    ]
    return ", ".join([BaseFingerprint.of(folder).architecture, *filter(None, traits)])
