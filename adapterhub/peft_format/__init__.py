"""PEFT's adapter folders: config, tensor names, safetensors headers and checks, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.peft_format.checks import AdapterInfo, LoraShape, check_shapes, inspect_adapter
    from adapterhub.peft_format.config import (
        CONFIG_FILE,
        WEIGHTS_FILE,
        AdapterConfig,
        LoraSettings,
        adapter_digest,
        parse_tensors,
    )
    from adapterhub.peft_format.safetensors_header import TensorInfo, read_header

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "AdapterConfig",
    "AdapterInfo",
    "LoraSettings",
    "LoraShape",
    "TensorInfo",
    "adapter_digest",
    "check_shapes",
    "inspect_adapter",
    "parse_tensors",
    "read_header",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "AdapterConfig": "adapterhub.peft_format.config",
        "AdapterInfo": "adapterhub.peft_format.checks",
        "CONFIG_FILE": "adapterhub.peft_format.config",
        "LoraSettings": "adapterhub.peft_format.config",
        "LoraShape": "adapterhub.peft_format.checks",
        "TensorInfo": "adapterhub.peft_format.safetensors_header",
        "WEIGHTS_FILE": "adapterhub.peft_format.config",
        "adapter_digest": "adapterhub.peft_format.config",
        "check_shapes": "adapterhub.peft_format.checks",
        "inspect_adapter": "adapterhub.peft_format.checks",
        "parse_tensors": "adapterhub.peft_format.config",
        "read_header": "adapterhub.peft_format.safetensors_header",
    },
)
