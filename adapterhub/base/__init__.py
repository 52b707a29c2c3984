"""The frozen base model: locating, fingerprinting and loading it, and its quantised weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.base.fingerprint import BaseFingerprint
    from adapterhub.base.fit import check_against_base, check_fit
    from adapterhub.base.linear_layers import LinearLayers
    from adapterhub.base.linear_modules import linear_shape
    from adapterhub.base.loading import Base, load_base
    from adapterhub.base.locating import DEMO_BASE, demo_base_folder, locate_base, tokenizer_chat_template
    from adapterhub.base.quantized_weights import dequantize_module_weight, disable_weight_packing, is_packed

__all__ = [
    "DEMO_BASE",
    "Base",
    "BaseFingerprint",
    "LinearLayers",
    "check_against_base",
    "check_fit",
    "demo_base_folder",
    "dequantize_module_weight",
    "disable_weight_packing",
    "is_packed",
    "linear_shape",
    "load_base",
    "locate_base",
    "tokenizer_chat_template",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Base": "adapterhub.base.loading",
        "BaseFingerprint": "adapterhub.base.fingerprint",
        "DEMO_BASE": "adapterhub.base.locating",
        "LinearLayers": "adapterhub.base.linear_layers",
        "check_against_base": "adapterhub.base.fit",
        "check_fit": "adapterhub.base.fit",
        "demo_base_folder": "adapterhub.base.locating",
        "dequantize_module_weight": "adapterhub.base.quantized_weights",
        "disable_weight_packing": "adapterhub.base.quantized_weights",
        "is_packed": "adapterhub.base.quantized_weights",
        "linear_shape": "adapterhub.base.linear_modules",
        "load_base": "adapterhub.base.loading",
        "locate_base": "adapterhub.base.locating",
        "tokenizer_chat_template": "adapterhub.base.locating",
    },
)
