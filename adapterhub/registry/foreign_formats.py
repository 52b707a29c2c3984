"""Names what a folder holds in place of a PEFT adapter, and the next command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE

_SHARD = re.compile(r"adapter_model-\d+-of-\d+\.safetensors")
_JOIN = (
    "import glob; from safetensors.torch import load_file, save_file; "
    "save_file({k: v for f in glob.glob('adapter_model-*.safetensors') for k, v in load_file(f).items()}, "
    f"'{WEIGHTS_FILE}')"
)


def newest_subfolder(folder: Path) -> str | None:
    """The sub-folder with an adapter that was written last: the one with the highest number, such as a checkpoint."""
    names = [path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}")]
    return max(names, key=_number_then_name, default=None)


def _number_then_name(name: str) -> tuple[int, str]:
    match = re.search(r"(\d{1,18})$", name)
    return (int(match[1]) if match else -1, name)


def describe_foreign(folder: Path) -> tuple[str, str] | None:
    """What a folder without a whole PEFT adapter holds.

    Args:
        folder: It has no `adapter_config.json`, or no `adapter_model.safetensors`.

    Returns:
        What it is, and what to do; None if it is not known.
    """
    names, path = {one.name for one in folder.iterdir()}, shlex.quote(str(folder))
    if any(map(_SHARD.fullmatch, names)):
        return "its weights are in shards", f'Join them: cd {path} && python -c "{_JOIN}"'
    if "adapters.safetensors" in names:
        return (
            "it is an adapter of mlx-lm",
            f"Fuse it: `mlx_lm.fuse --model BASE --adapter-path {path} --save-path FUSED --dequantize`. Then serve "
            "FUSED as a base. Or train it with PEFT.",
        )
    if "pytorch_lora_weights.safetensors" in names:
        return "it is a LoRA of diffusers, for a model of images", "Use an adapter of a language model."
    if any(name.endswith(".gguf") for name in names):
        return "it holds a GGUF file of llama.cpp", "Take the PEFT adapter that it was converted from."
    if "config.json" in names and any(re.fullmatch(r"model.*\.safetensors", name) for name in names):
        return "it is a whole model", f"Serve it as a base: `adapterhub run base TEXT --base {path}`."
    if WEIGHTS_FILE in names:
        return f"{CONFIG_FILE} is missing", "Copy it from the same training run; it has the rank and alpha."
    return None
