"""In words, how a base is multiplied on this machine, and why: what `load_base` has chosen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn

from adapterhub.base.half_weights import HalfWeightLinear
from adapterhub.base.packed_kernel import compiled_products
from adapterhub.base.packed_linear import PackedLinear4bit
from adapterhub.base.weight_only import WeightOnlyLinear


def describe_arithmetic(model: Any, compute_dtype: torch.dtype, matmul_dtype: torch.dtype) -> tuple[str, ...]:
    """A line for each choice: the dtypes, from how many tokens packed layers are dense, the output layer.

    Args:
        model: A model that no engine has wrapped.
        compute_dtype: The dtype of its activations.
        matmul_dtype: The dtype in which its quantised layers multiply.
    """
    lines = [f"activations in {_name(compute_dtype)}"]
    packed = [layer for layer in model.modules() if isinstance(layer, PackedLinear4bit)]
    if matmul_dtype != compute_dtype:
        own = "a compiled kernel" if packed and compiled_products() else "bitsandbytes' kernel"
        kernel = f"{own} for AVX512-BF16" if packed else "torch's kernel for weights of few bits"
        lines[0] += f", quantised layers multiplied in {_name(matmul_dtype)} by {kernel}"
    lines += _thresholds(packed)
    if any(map(_is_dequantised, model.modules())):
        lines.append("layers of few bits are dequantised at every step")
    if isinstance(head := model.get_output_embeddings(), nn.Linear):
        halved = isinstance(head, HalfWeightLinear)
        how = (
            "in half precision, which holds it, summed in float32"
            if halved
            else f"in {_name(head.weight.dtype)}"
        )
        lines.append(f"the output layer's weight is read {how}")
    return tuple(lines)


def _thresholds(layers: list[PackedLinear4bit]) -> Iterator[str]:
    shapes: dict[int | None, dict[str, None]] = defaultdict(dict)
    for layer in layers:
        shapes[layer.dense_threshold][f"{layer.out_features} x {layer.in_features}"] = None
    for tokens in sorted(shapes, key=lambda tokens: tokens or 0):
        how = f"dequantised and multiplied densely from {tokens} tokens, as measured on this processor"
        if tokens is None:
            how = "multiplied packed however many tokens, as they are small or dense is no faster here"
        yield f"4-bit layers of {', '.join(shapes[tokens])} are {how}"


def _is_dequantised(layer: nn.Module) -> bool:
    """Whether a layer on a CPU has no kernel that reads its weight as it is stored."""
    if isinstance(layer, WeightOnlyLinear):
        return layer.dense_dtype is not None
    return isinstance(layer, Linear4bit) and layer.weight.is_cpu and not layer.support_avx512bf16_for_cpu


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
