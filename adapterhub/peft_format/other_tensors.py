"""What a tensor is whose name is not PEFT's name of LoRA on a linear layer, and what to do about it."""

from __future__ import annotations

import re

_PREFIX = "base_model.model."
# The state dict of a live model: `...lora_A.default.weight`.
_WITH_ADAPTER = re.compile(
    r"\.(?:lora_[AB]\.\w+\.weight|lora_magnitude_vector\.(?!weight$)\w+(?:\.weight)?)$"
)
_LORA = re.compile(r"\.lora_(?:[AB]\.weight|magnitude_vector(?:\.weight)?)$")
# Python source, for the hint.
_WITHOUT_ADAPTER = (
    "re.sub(r'(lora_[AB]|lora_magnitude_vector)[.](?!weight$)[^.]+(?=[.]weight$|$)', r'\\1', k)"
)


def describe_tensor(name: str) -> tuple[str, str]:
    """Describes a tensor of an adapter's file that is no LoRA parameter under PEFT's name.

    Returns:
        What it is, and what to do.
    """
    if "modules_to_save" in name or (name.endswith((".weight", ".bias")) and "lora_" not in name):
        return "a weight of the base itself", _TRAIN_OTHERWISE
    has_prefix = name.startswith("base_model.")
    if _WITH_ADAPTER.search(name):
        what = "named as in a live model, with the adapter's name in it"
        return what, _rename(_WITHOUT_ADAPTER if has_prefix else f"'{_PREFIX}' + {_WITHOUT_ADAPTER}")
    if _LORA.search(name) and not has_prefix:
        return f"LoRA without PEFT's prefix {_PREFIX!r}", _rename(f"'{_PREFIX}' + k")
    if re.search(r"\.lora_[ab]$", name):
        return (
            "a tensor of mlx-lm",
            "Train it with PEFT, or fuse it with `mlx_lm.fuse` and serve that as a base.",
        )
    return "no part of LoRA on a linear layer", _TRAIN_OTHERWISE


_TRAIN_OTHERWISE = "Train LoRA on linear layers and embeddings, and modules_to_save of single layers."


def _rename(key: str) -> str:
    return (
        "Save the adapter with PEFT's save_pretrained, or rename its tensors in its folder: python -c "
        "\"import re; from safetensors.torch import load_file, save_file; f = 'adapter_model.safetensors'; "
        f'save_file({{{key}: v for k, v in load_file(f).items()}}, f)"'
    )
