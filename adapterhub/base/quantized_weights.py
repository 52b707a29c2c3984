"""The weights of linear layers as they are stored: plain, 8-bit, or bitsandbytes' 4-bit formats.

On CPUs with AVX512-BF16, bitsandbytes 0.50 re-orders a `Linear4bit`'s weights in place at the first eval-mode
forward ("packing", for its fast kernel). Afterwards no gradient flows through that layer, and dequantising it yields
garbage, both silently. Serving wants the kernel; training must never pack; reading the weights must unpack.
"""

from __future__ import annotations

import copy

import torch
from bitsandbytes.functional import (
    _convert_weight_packed_for_cpu_inverse,
    dequantize_4bit,
    int8_vectorwise_dequant,
)
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterhub.errors import ConfigError

_PACKED_ROWS = 32
_QUANTIZATION_BLOCK = 64


def disable_weight_packing(model: nn.Module, *, only_unsupported: bool = False) -> None:
    """Makes 4-bit layers keep the layout through which gradients flow, unpacking those already packed.

    Args:
        model: Any module tree.
        only_unsupported: Forbid it only where bitsandbytes would fail: its packed kernel takes rows in groups of 32 and
            columns in whole quantisation blocks of 64.
    """
    for layer in model.modules():
        if isinstance(layer, Linear4bit) and not (only_unsupported and _fits_packing(layer)):
            layer.support_avx512bf16_for_cpu = False
            if is_packed(layer):
                layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu_inverse(
                    layer.weight.data, layer.weight.quant_state
                )


def is_packed(layer: Linear4bit) -> bool:
    """Whether bitsandbytes has re-ordered this layer's weights for its CPU kernel."""
    return bool(getattr(layer.weight.quant_state, "packing_format_for_cpu", False))


def dequantize_module_weight(layer: nn.Module) -> torch.Tensor:
    """A layer's weight as a float32 matrix of shape (out_features, in_features), whatever it is stored as.

    Raises:
        ConfigError: The layer is no linear layer.
    """
    if isinstance(layer, Linear4bit):
        return _dequantize_4bit(layer)
    if isinstance(layer, Linear8bitLt):
        return _dequantize_8bit(layer)
    if isinstance(layer, Conv1D | nn.Linear):
        weight = layer.weight.detach().float()
        return weight.T if isinstance(layer, Conv1D) else weight
    raise ConfigError(f"A {type(layer).__name__} holds no weight matrix that an adapter could change.")


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(out_features, in_features) of a layer that an adapter may target, None for any other module."""
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    if isinstance(module, nn.Linear):  # Linear4bit and Linear8bitLt are subclasses
        return module.out_features, module.in_features
    return None


def _dequantize_8bit(layer: Linear8bitLt) -> torch.Tensor:
    # bitsandbytes moves the scales from the weight to the layer's state at the first forward.
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    dense: torch.Tensor = int8_vectorwise_dequant(layer.weight.data, scales).float()
    return dense


def _dequantize_4bit(layer: Linear4bit) -> torch.Tensor:
    data, state = layer.weight.data, layer.weight.quant_state
    if is_packed(layer):
        state = copy.copy(state)
        state.original_nested = (
            False  # the packed scales are whole already; re-quantising them would lose accuracy
        )
        data, state = _convert_weight_packed_for_cpu_inverse(data, state)
        state.absmax = state.absmax.T.reshape(-1).float()
    dense: torch.Tensor = dequantize_4bit(data, state).float()
    return dense.reshape(layer.out_features, layer.in_features)


def _fits_packing(layer: Linear4bit) -> bool:
    fits: bool = layer.out_features % _PACKED_ROWS == 0 and layer.in_features % _QUANTIZATION_BLOCK == 0
    return fits
