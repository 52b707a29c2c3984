"""Bases in 8 or 4 bits that transformers brings back to 16 bits: that form, a folder that is written once and cached.

fp8 (DeepSeek, Qwen's and Mistral's FP8 repositories) and mxfp4 (gpt-oss) need no library besides. As with a GGUF file,
serving, fine-tuning and merging take weights in transformers' layout, and 4-bit loading quantises these anew.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from adapterhub._files import os_errors_as
from adapterhub.base.auto_class import whole_class
from adapterhub.base.conversion_cache import converted_folder
from adapterhub.base.fingerprint import weight_files
from adapterhub.base.stored_quantization import is_dequantized, quantization_settings
from adapterhub.config import cache_folder
from adapterhub.errors import ConfigError

_log = logging.getLogger(__name__)
_VERSION = 2
"""Counts changes of what is written, so that an older form is not used."""
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "README.md", "LICENSE*", "NOTICE*")


def sixteen_bit_folder(folder: Path) -> Path:
    """The folder of a base's 16-bit form: its own, or one in the cache that is made at the first use.

    The conversion holds the model in memory in 16 bits.

    Args:
        folder: The base's folder.

    Raises:
        ConfigError: The files are damaged, or the folder cannot be written.
    """
    if not is_dequantized(folder):
        return folder
    with os_errors_as(ConfigError, f"The base {str(folder)!r} could not be brought to 16 bits"):
        return converted_folder(
            cache_folder("dequantized"), folder, _sources, _VERSION, lambda out: _convert(folder, out)
        )


def _sources(folder: Path) -> list[Path]:
    return [folder / "config.json", *weight_files(folder)]


def _convert(folder: Path, out: Path) -> None:
    _log.warning("Base %s is brought to 16 bits, once; that form is kept in %s.", folder, out.parent)
    for path in {path for pattern in _COPIED for path in folder.glob(pattern)}:
        if path.name != "config.json" and not path.name.endswith(".index.json"):
            shutil.copyfile(path, out / path.name)
    try:
        model = _load(folder)
    except OSError:
        raise
    except Exception as error:  # transformers raises anything on damaged files
        raise ConfigError(
            f"The base {str(folder)!r} could not be brought to 16 bits: {error}",
            hint="Take the repository with its 16-bit weights, if there is one.",
        ) from error
    model.save_pretrained(out)


def _load(folder: Path) -> Any:
    import torch
    from transformers import AutoConfig, FineGrainedFP8Config, Mxfp4Config

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    method = (quantization_settings(folder) or {})["quant_method"]
    kind = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}[method]
    model, report = whole_class(config).from_pretrained(
        folder,
        quantization_config=kind(dequantize=True),
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise ValueError(f"it lacks weights, such as {sorted(report['missing_keys'])[0]!r}")
    stored = (name for name, weight in model.named_parameters() if weight.element_size() == 1)
    if (name := next(stored, None)) is not None:
        raise ValueError(f"its weight {name!r} has no scale that transformers knows")
    # The weights are plain ones by now; with these they would be saved in the format that they came in.
    model.hf_quantizer = model._weight_conversions = None
    for part in (model.config, model.config.get_text_config()):
        part.__dict__.pop("quantization_config", None)
    return model
