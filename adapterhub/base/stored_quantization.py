"""Bases whose files are quantised already, as `adapterhub merge --quantize` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from adapterhub.errors import ConfigError


def stored_quantization(folder: Path) -> Literal["nf4", "fp4", "int8"] | None:
    """How bitsandbytes has stored the linear layers in a base's files; None if they are not quantised.

    Args:
        folder: The base's folder, whose `config.json` is JSON.

    Raises:
        ConfigError: Another library quantised them.
    """
    settings = json.loads((folder / "config.json").read_bytes()).get("quantization_config")
    if not settings:
        return None
    if settings.get("load_in_8bit"):
        return "int8"
    if settings.get("load_in_4bit"):
        return "nf4" if settings.get("bnb_4bit_quant_type") == "nf4" else "fp4"
    raise ConfigError(
        f"The weights of base {str(folder)!r} are quantised by {settings.get('quant_method')!r}.",
        hint="Give the folder of its 16-bit weights, or weights that bitsandbytes quantised.",
    )
