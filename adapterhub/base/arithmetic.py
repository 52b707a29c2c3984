"""In words, how a base is multiplied on this machine, and why: what `load_base` has chosen."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from adapterhub.base.half_weights import HalfWeightLinear
from adapterhub.base.packed_linear import PackedLinear4bit


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
        kernel = (
            "bitsandbytes' kernel for AVX512-BF16" if packed else "torch's kernel for weights of few bits"
        )
        lines[0] += f", quantised layers multiplied in {_name(matmul_dtype)} by {kernel}"
    if packed:
        lines.append(f"4-bit layers are dequantised once and multiplied densely {_thresholds(packed)}")
    if isinstance(head := model.get_output_embeddings(), nn.Linear):
        halved = isinstance(head, HalfWeightLinear)
        how = (
            "in half precision, which holds it, summed in float32"
            if halved
            else f"in {_name(head.weight.dtype)}"
        )
        lines.append(f"the output layer's weight is read {how}")
    return tuple(lines)


def _thresholds(layers: list[PackedLinear4bit]) -> str:
    """Such as "from 256 tokens (2048 x 5632), never (256 x 2048)", with the reason."""
    shapes: dict[int | None, dict[str, None]] = defaultdict(dict)
    for layer in layers:
        shapes[layer.dense_threshold][f"{layer.out_features} x {layer.in_features}"] = None
    parts = [
        f"{f'from {tokens} tokens' if tokens else 'never'} ({', '.join(shapes[tokens])})"
        for tokens in sorted(shapes, key=lambda tokens: tokens or 0)
    ]
    return f"{'; '.join(parts)}, by what was measured on this processor"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
