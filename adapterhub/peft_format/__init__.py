"""PEFT's adapter folders: config, tensor names, safetensors headers and checks, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.peft_format.checks import AdapterInfo, check_fit, inspect_adapter
    from adapterhub.peft_format.config import AdapterConfig, LoraSettings, adapter_digest
    from adapterhub.peft_format.safetensors_header import TensorInfo, read_header

__all__ = [
    "AdapterConfig",
    "AdapterInfo",
    "LoraSettings",
    "TensorInfo",
    "adapter_digest",
    "check_fit",
    "inspect_adapter",
    "read_header",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "AdapterConfig": "adapterhub.peft_format.config",
        "AdapterInfo": "adapterhub.peft_format.checks",
        "LoraSettings": "adapterhub.peft_format.config",
        "TensorInfo": "adapterhub.peft_format.safetensors_header",
        "adapter_digest": "adapterhub.peft_format.config",
        "check_fit": "adapterhub.peft_format.checks",
        "inspect_adapter": "adapterhub.peft_format.checks",
        "read_header": "adapterhub.peft_format.safetensors_header",
    },
)
