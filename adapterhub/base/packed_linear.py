"""Packed 4-bit layers: a product for a few tokens, and a dense one for many.

On CPUs with AVX512-BF16, bitsandbytes packs 4-bit weights for a kernel that multiplies a few tokens quickly. A compiled
one of our own gives the same bits in less time; without a compiler it is bitsandbytes', past its Python. A prefill does
better with the weight dequantised once for all its tokens and multiplied densely, several times so with AMX. All
compute in bfloat16 and sum in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn

from adapterhub.base.packed_kernel import PackedWeight, compiled_products, multiply_by_bitsandbytes
from adapterhub.base.quantized_weights import PACKED_ROWS, is_packed

_EACH_LOW_NIBBLE = 0x0F0F


class PackedLinear4bit(Linear4bit):  # type: ignore[misc]  # bitsandbytes has no types
    """A layer of bitsandbytes whose weight is packed; until it is, and where it cannot be, it is as the original.

    Attributes:
        dense_threshold: Number of tokens from which the layer is multiplied densely; None for never.
    """

    dense_threshold: int | None = None
    _packed: PackedWeight | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which have weights of their own: without the addresses of these."""
        return {**self.__dict__, "_packed": None}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ weight.T + bias`, computed in bfloat16; shape (..., out_features), in the dtype of `x`."""
        if not x.numel():  # bitsandbytes divides by the number of tokens, and the process ends
            return x.new_empty((*x.shape[:-1], self.out_features))
        if not is_packed(self) or not x.is_cpu:
            own: torch.Tensor = super().forward(x)
            return own
        dense = self.dense_threshold is not None and x.numel() >= self.dense_threshold * self.in_features
        y = self.multiply_densely(x) if dense else self.multiply_packed(x)
        bias = self._parameters["bias"]  # modules are slow to find it as an attribute
        return y if bias is None else y.add_(bias.to(x.dtype))

    def multiply_packed(self, x: torch.Tensor) -> torch.Tensor:
        """The product with the weight as it is packed, without the bias; rounded to bfloat16, in the dtype of `x`.

        Args:
            x: Inputs, shape (..., in_features).

        Raises:
            ValueError: Its width is another; the kernel would read beyond its end.
        """
        if x.shape[-1] != self.in_features:
            raise ValueError(f"An input of width {x.shape[-1]} for a layer of width {self.in_features}.")
        run = compiled_products().get(x.dtype)
        if run is None:
            y = multiply_by_bitsandbytes(self.weight, self.weight.quant_state, x.to(torch.bfloat16))
            return y.to(x.dtype)
        x, weight = x.contiguous(), self.weight
        if self._packed is None or not self._packed.is_of(weight, weight.quant_state):
            self._packed = PackedWeight(weight, weight.quant_state)
        y = x.new_empty((*x.shape[:-1], self.out_features))
        self._packed.multiply(run, x, y)
        return y

    def multiply_densely(self, x: torch.Tensor) -> torch.Tensor:
        """The same product with the weight dequantised, for the length of the call, to 2 bytes a weight.

        Args:
            x: Inputs, shape (..., in_features).
        """
        return nn.functional.linear(x.to(torch.bfloat16), self.dequantize()).to(x.dtype)

    def dequantize(self) -> torch.Tensor:
        """The packed weight in bfloat16, shape (out_features, in_features)."""
        state, shape = self.weight.quant_state, (self.out_features, self.in_features)
        plain = _unpacked(self.weight.data, *shape)
        scales = state.absmax.T.float().contiguous()
        weight: torch.Tensor = torch.ops.bitsandbytes.dequantize_4bit(
            plain, scales, state.blocksize, state.quant_type, shape, torch.bfloat16
        )
        return weight


def take_packed_layers(model: nn.Module) -> list[PackedLinear4bit]:
    """Turns the 4-bit layers of a model that bitsandbytes packs, or will pack, into those of this module.

    Args:
        model: Any module tree on a CPU, which is not trained.

    Returns:
        Its packed layers.
    """
    for layer in model.modules():
        if type(layer) is Linear4bit and layer.support_avx512bf16_for_cpu and layer.weight.is_cpu:
            layer.__class__ = PackedLinear4bit
    return [layer for layer in model.modules() if isinstance(layer, PackedLinear4bit)]


@contextmanager
def dense_from(model: nn.Module, tokens: int) -> Iterator[None]:
    """Within it, layers that have a threshold are multiplied densely from so many tokens.

    Args:
        model: Any module tree.
        tokens: The number.
    """
    own = {
        layer: layer.dense_threshold
        for layer in model.modules()
        if isinstance(layer, PackedLinear4bit) and layer.dense_threshold
    }
    for layer in own:
        layer.dense_threshold = tokens
    try:
        yield
    finally:
        for layer, threshold in own.items():
            layer.dense_threshold = threshold


def _unpacked(packed: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    """4-bit weights in bitsandbytes' plain layout, shape (out_features, in_features / 2), from its packed one.

    The packed bytes have shape (out / 32, in / 2, 16, 2): a pair of neighbours of one row is a pair of bytes, which
    hold that of the row 16 below too. So one transposition of pairs does, and neighbours are brought into one byte.
    """
    groups, pairs = out_features // PACKED_ROWS, in_features // 2
    both = packed.view(torch.int16).view(groups, pairs, PACKED_ROWS // 2).transpose(1, 2).contiguous()
    plain = packed.new_empty(groups, 2, PACKED_ROWS // 2, pairs)
    for half in (0, 1):
        neighbours = both.bitwise_and(_EACH_LOW_NIBBLE)
        second = neighbours >> 8
        plain[:, half] = neighbours.bitwise_left_shift_(4).bitwise_or_(second)
        both.bitwise_right_shift_(4)
    return plain.view(out_features, pairs)
