"""Bases whose files are quantised already, as `adapterhub merge --quantize` and others write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from adapterhub._files import read_regular
from adapterhub.errors import AdapterInvalidError, ConfigError

DEQUANTIZED = ("fp8", "mxfp4")
"""Methods whose files are brought back to 16 bits; see `adapterhub/base/dequantizing.py`."""

_MAX_CONFIG_BYTES = 32 * 2**20


def quantization_settings(folder: Path) -> Mapping[str, Any] | None:
    """The `quantization_config` in a base's `config.json`, or that of its decoder; None if neither can be read."""
    try:
        config = json.loads(read_regular(folder / "config.json", _MAX_CONFIG_BYTES, follow_links=True))
    except (OSError, ValueError, RecursionError, AdapterInvalidError):
        return None
    found = (_value(part, "quantization_config") for part in (config, _value(config, "text_config")))
    return next((settings for settings in found if isinstance(settings, dict) and settings), None)


def _value(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else None


def is_dequantized(folder: Path) -> bool:
    """Whether a base's files are brought to 16 bits before they are loaded."""
    return (quantization_settings(folder) or {}).get("quant_method") in DEQUANTIZED


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
