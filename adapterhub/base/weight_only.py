"""Linear layers whose weights are stored in few bits, and multiplied by torch's own kernels for CPUs.

Only the weights are quantised, as they are loaded. The kernels read activations in bfloat16, so that is what a layer
rounds its input to; sums are in float32. No gradient flows through them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

WeightOnlyQuantization = Literal["int4", "int8_weight_only"]


class WeightOnlyLinear(nn.Linear, ABC):
    """A linear layer with a quantised weight; it has no values until it is given what `quantized` makes.

    Args:
        in_features: Size of its input.
        out_features: Size of its output.
        bias: Its bias, which is not quantised.
    """

    quantization: WeightOnlyQuantization
    """Its kind."""
    transposed: bool = False
    """Whether the files hold it as (in_features, out_features), as GPT-2's."""
    dense_dtype: torch.dtype | None = None
    """The dtype in which its dequantised weight is multiplied; None for the kernel, which takes bfloat16."""

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        for name, (shape, dtype) in self._stored(in_features, out_features).items():
            values = torch.empty(shape, dtype=dtype, device="meta")
            if name == "weight":
                self.weight = nn.Parameter(values, requires_grad=False)
            else:
                self.register_buffer(name, values)
        self.register_parameter("bias", bias)

    @classmethod
    @abstractmethod
    def fits(cls, in_features: int, out_features: int) -> bool:
        """Whether torch's kernel multiplies a weight of this size."""

    @classmethod
    @abstractmethod
    def _stored(
        cls, in_features: int, out_features: int
    ) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """The shapes and dtypes of the tensors that stand for a weight."""

    @classmethod
    @abstractmethod
    def quantized(cls, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Quantises a weight.

        Args:
            weight: In floating point, shape (out_features, in_features).

        Returns:
            The tensors that stand for it, by their names in the layer.
        """

    @abstractmethod
    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight, shape (out_features, in_features).

        Args:
            dtype: What it is rounded to.
        """

    @abstractmethod
    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        """The product with the weight: bfloat16 (tokens, in_features) -> (tokens, out_features)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`; the product is rounded to bfloat16 too, and the bias is added in the dtype of `x`."""
        if self.dense_dtype is not None:
            weight = self.dequantize(self.dense_dtype)
            y = nn.functional.linear(x.to(self.dense_dtype), weight)
        else:
            rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
            y = self._multiply(rows.contiguous()).view(*x.shape[:-1], self.out_features)
        y = y.to(x.dtype)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """As `nn.Linear`."""
        return f"{super().extra_repr()}, quantization={self.quantization}"


class Int8WeightOnlyLinear(WeightOnlyLinear):
    """A weight in 8 bits, with one scale for each output."""

    scales: torch.Tensor
    quantization = "int8_weight_only"

    @classmethod
    def fits(cls, in_features: int, out_features: int) -> bool:
        """The kernel reads beyond the end of other rows."""
        return in_features % _INT8_STEP == 0

    @classmethod
    def _stored(
        cls, in_features: int, out_features: int
    ) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        return {
            # Not a matrix, or code of a model that reads the weight itself would take the codes for it.
            "weight": ((out_features, in_features, 1), torch.int8),
            "scales": ((out_features,), torch.bfloat16),
        }

    @classmethod
    def quantized(cls, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rounds to the nearest of 255 values between the largest weight of an output and its negative."""
        weight = weight.float()
        scales = (weight.abs().amax(1) / _INT8_MAX).clamp_(min=SMALLEST_SCALE).bfloat16()
        codes = (weight / scales.float()[:, None]).round_().clamp_(-_INT8_MAX, _INT8_MAX)
        return {"weight": codes.to(torch.int8)[..., None], "scales": scales}

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight, shape (out_features, in_features)."""
        return (self.weight[..., 0].float() * self.scales.float()[:, None]).to(dtype)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        return torch._weight_int8pack_mm(x, self.weight.view(self.out_features, -1), self.scales)


_INT8_MAX, _INT8_STEP = 127, 16
SMALLEST_SCALE = 1e-30
"""So that what has only zeros is divided by something."""
