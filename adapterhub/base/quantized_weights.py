"""Quantised linear layers: their weights dequantised, their dtypes, and bitsandbytes' packing of 4-bit weights.

On CPUs with AVX512-BF16, bitsandbytes 0.50 packs the weights of a `Linear4bit` for its fast kernel: at the first
forward in eval mode it re-orders them in place. Afterwards no gradient flows through the layer and `dequantize_4bit`
returns garbage, both without an error. So training disables packing, and dequantising unpacks a copy.
"""

from __future__ import annotations

import copy

import torch
from accelerate.utils.modeling import align_module_device
from bitsandbytes.functional import (
    _convert_weight_packed_for_cpu_inverse,
    dequantize_4bit,
    int8_vectorwise_dequant,
)
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapterhub.base.half_weights import HalfWeightLinear
from adapterhub.base.weight_only import WeightOnlyLinear
from adapterhub.errors import InvalidRequestError

PACKED_ROWS = 32
"""Rows of a weight that bitsandbytes packs together."""
_LEAST_WIDTH = 64
_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Weights with one scale, as bitsandbytes has them. A file may name another number, which kernels do not check."""


def disable_weight_packing(model: nn.Module, *, only_unsupported: bool = False) -> None:
    """Disables packing of 4-bit layers, through which no gradient flows, and unpacks those already packed.

    Args:
        model: Any module tree.
        only_unsupported: Only for layers of sizes that bitsandbytes cannot pack: out_features must be a multiple of
            32, and in_features one of 64 and of the number of weights with one scale, which is 64 unless a file says
            otherwise.
    """
    for layer in model.modules():
        if isinstance(layer, Linear4bit) and not (only_unsupported and _can_be_packed(layer)):
            layer.support_avx512bf16_for_cpu = False
            if is_packed(layer):
                layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu_inverse(
                    layer.weight.data, layer.weight.quant_state
                )


def convert_unquantized(model: nn.Module, dtype: torch.dtype) -> None:
    """Has a model whose files are quantised compute in a dtype; transformers keeps the one that is stored.

    Args:
        model: The model; its weights that are not quantised are converted.
        dtype: The dtype of its activations.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.compute_dtype = dtype


def matmul_dtype(model: nn.Module, compute_dtype: torch.dtype) -> torch.dtype:
    """The dtype in which linear layers multiply: bfloat16 where the kernel of quantised weights takes nothing else.

    Args:
        model: Any module tree.
        compute_dtype: The dtype of its activations.
    """
    return torch.bfloat16 if any(map(_rounds_to_bfloat16, model.modules())) else compute_dtype


def _rounds_to_bfloat16(layer: nn.Module) -> bool:
    """Whether bitsandbytes packs or will pack the layer's weights, or torch's kernel multiplies them."""
    if isinstance(layer, WeightOnlyLinear):
        return layer.dense_dtype is None
    if not isinstance(layer, Linear4bit):
        return False
    return bool(layer.support_avx512bf16_for_cpu and layer.weight.device.type == "cpu")


def weight_bytes(model: nn.Module) -> int:
    """The memory of a model's weights, with the scales of quantised ones and the half-precision form of a head.

    Args:
        model: Any module tree.
    """
    tensors = [*model.parameters(), *model.buffers()]
    states = (getattr(tensor, "quant_state", None) for tensor in tensors)
    # Packed weights have no nested scales.
    nested = ((state, getattr(state, "state2", None)) for state in states if state)
    scales = (one.absmax for both in nested for one in both if one)
    halved = (layer.packed_bytes for layer in model.modules() if isinstance(layer, HalfWeightLinear))
    size: int = sum(tensor.nbytes for tensor in (*tensors, *scales)) + sum(halved)
    return size


def is_packed(layer: Linear4bit) -> bool:
    """Whether bitsandbytes has packed the layer's weights for its CPU kernel."""
    return bool(getattr(layer.weight.quant_state, "packing_format_for_cpu", False))


def dequantize_module_weight(layer: nn.Module) -> torch.Tensor:
    """The weight of a linear layer in float32, dequantised if need be, as PEFT's function of this name.

    Args:
        layer: `nn.Linear`, `Conv1D`, `WeightOnlyLinear`, `Linear4bit` (packed or not) or `Linear8bitLt`. It is not
            changed. Accelerate may have left its weight on disk.

    Returns:
        A matrix of shape (out_features, in_features).

    Raises:
        InvalidRequestError: The module is not a linear layer.
    """
    if isinstance(layer, WeightOnlyLinear):
        return layer.dequantize(torch.float32)
    if isinstance(layer, Linear4bit):
        return _dequantize_4bit(layer)
    if isinstance(layer, Linear8bitLt):
        return _dequantize_8bit(layer)
    if isinstance(layer, Conv1D | nn.Linear):
        with align_module_device(layer):
            weight = layer.weight.detach().float()
        return weight.T if isinstance(layer, Conv1D) else weight
    raise InvalidRequestError(f"A {type(layer).__name__} is not a linear layer.")


def _dequantize_8bit(layer: Linear8bitLt) -> torch.Tensor:
    # bitsandbytes moves the scales from the weight to `layer.state` at the first forward.
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    weight: torch.Tensor = int8_vectorwise_dequant(layer.weight.data, scales).float()
    return weight


def _dequantize_4bit(layer: Linear4bit) -> torch.Tensor:
    data, state = layer.weight.data, layer.weight.quant_state
    if is_packed(layer):
        state = copy.copy(state)
        # Packing has dequantised nested scales; unpacking must not quantise them again, which loses accuracy.
        state.original_nested = False
        data, state = _convert_weight_packed_for_cpu_inverse(data, state)
        state.absmax = state.absmax.T.reshape(-1).float()
    weight: torch.Tensor = dequantize_4bit(data, state).float()
    return weight.reshape(layer.out_features, layer.in_features)


def _can_be_packed(layer: Linear4bit) -> bool:
    state, shape = layer.weight.quant_state, (layer.out_features, layer.in_features)
    # The block size and the shape of a base that is stored quantised are what its file says.
    if state is None or tuple(state.shape or ()) != shape or state.blocksize not in _BLOCK_SIZES:
        return False
    packable: bool = shape[0] % PACKED_ROWS == 0 and shape[1] % max(state.blocksize, _LEAST_WIDTH) == 0
    return packable
