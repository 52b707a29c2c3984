"""An output layer in float32 whose weight is read in half precision: half the memory traffic, the same product.

The head is the largest layer that 4-bit loading leaves alone, and with one token its time is that of reading it. Most
checkpoints are stored in 16 bits, so their float32 weights have zeros below. FBGEMM, which is a part of torch,
multiplies float32 inputs by weights in half precision and sums in float32.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

_MIN_WEIGHTS = 1 << 20
"""A smaller layer stays in the cache of the processor, so there is nothing to gain."""
_BLOCK = 1 << 22
_EXACT = 2.0**-25
"""Half the distance of the smallest half-precision numbers. Weights below 2 ** -14 lose no more than that, and others
that were bfloat16 lose nothing."""


class HalfWeightLinear(nn.Linear):
    """A linear layer that also has its weight packed in half precision, 2 bytes a weight, and multiplies with that."""

    _packed: tuple[nn.Parameter, Any]
    """The weight, and what it is packed to; a copy of the layer may get another weight."""

    @property
    def packed_bytes(self) -> int:
        """Memory of the weight in half precision, beside that of `weight`."""
        return 2 * self.weight.numel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ weight.T + bias` in float32; as `nn.Linear` for other dtypes, and for a copy with another weight."""
        weight, packed = self._packed
        if self.weight is not weight or not x.dtype == weight.dtype == torch.float32:
            return super().forward(x)
        if x.ndim < 2 or x.requires_grad:  # FBGEMM takes no vector, and no gradient flows through it
            return super().forward(x)
        y: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(x, packed)
        if self.bias is not None:
            y += self.bias
        return y

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:
        """A plain layer: what is packed cannot be copied."""
        copied = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        memo[id(self)] = copied
        # With `memo`: a weight that is shared with the embedding stays so.
        copied._parameters = copy.deepcopy(self._parameters, memo)
        return copied


def halve_head(model: Any) -> bool:
    """Has a model's output layer read its weight in half precision, if that loses nothing.

    Args:
        model: A causal language model on a CPU, which is not trained.

    Returns:
        Whether it does now.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.dtype != torch.float32 or not head.weight.is_cpu:
        return False
    if head.weight.numel() < _MIN_WEIGHTS or not _is_exact(head.weight.detach()):
        return False
    try:
        packed = torch.ops.quantized.linear_prepack_fp16(head.weight.detach(), None)
    except (RuntimeError, NotImplementedError):  # not on this processor, or not in this build of torch
        return False
    halved: Any = head
    halved.__class__, halved._packed = HalfWeightLinear, (head.weight, packed)
    return True


def _is_exact(weight: torch.Tensor) -> bool:
    """Whether half precision holds a weight, but for what float32 would lose in a sum."""
    rows = max(1, _BLOCK // weight.shape[1])
    return all(
        bool((block.half().float() - block).abs_().max() <= _EXACT) for block in torch.split(weight, rows)
    )
