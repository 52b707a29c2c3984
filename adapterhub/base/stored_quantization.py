"""Bases whose files are quantised already, as `adapterhub merge --quantize` and others write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from adapterhub.errors import ConfigError

DEQUANTIZED = ("fp8", "mxfp4")
"""Methods whose files are brought back to 16 bits; see `adapterhub/base/dequantizing.py`."""


def quantization_settings(folder: Path) -> Mapping[str, Any] | None:
    """The `quantization_config` in a base's `config.json`; None if it has none or cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    settings = config.get("quantization_config") if isinstance(config, dict) else None
    return settings if isinstance(settings, dict) and settings else None


def stored_quantization(folder: Path) -> Literal["nf4", "fp4", "int8"] | None:
    """How bitsandbytes has stored the linear layers in a base's files; None if they are not quantised.

    Args:
        folder: The base's folder.

    Raises:
        ConfigError: Another library quantised them.
    """
    settings = quantization_settings(folder)
    if settings is None:
        return None
    if settings.get("load_in_8bit"):
        return "int8"
    if settings.get("load_in_4bit"):
        return "nf4" if settings.get("bnb_4bit_quant_type") == "nf4" else "fp4"
    raise ConfigError(
        f"The weights of base {str(folder)!r} are quantised by {settings.get('quant_method')!r}, which is not read.",
        hint="Give its 16-bit weights, mostly the repository without that word in its name; or weights that "
        f"bitsandbytes quantised, or in {' or '.join(DEQUANTIZED)}.",
    )
