"""Weights in 4 bits, in groups of 32 with a scale and an offset each, for torch's int4 kernel on CPUs.

A weight is `(code - 8) * scale + offset`, with codes of 0 to 15, as llama.cpp's Q4_0 and Q4_1 have it: weights that
come from such a file keep their values, but that scale and offset are rounded to bfloat16. Where codes lie in memory
depends on the processor, and torch has no function that reads them back. So the order is found by packing weights that
are row numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch

from adapterhub.base.weight_only import SMALLEST_SCALE, WeightOnlyLinear

_GROUP = 32
"""The smallest group that torch's kernel has, and the most accurate."""
_ROWS = 16
_MAX_CODE, _MIDDLE = 15, 8
_SHARES = (0.92, 0.84)
"""The shares of a group's range that are tried beside the whole; what is outside is rounded to its ends."""
_BLOCK_ELEMENTS = 2**18
"""Weights that are quantised at a time, so that what is computed beside them stays small."""


class Int4Linear(WeightOnlyLinear):
    """A weight in 4 bits; with scales and offsets in bfloat16 it takes 5."""

    scales_and_offsets: torch.Tensor
    quantization = "int4"

    @classmethod
    def fits(cls, in_features: int, out_features: int) -> bool:
        """Whole groups, and outputs by the number that the kernel computes together."""
        return in_features % _GROUP == 0 and out_features % _ROWS == 0

    @classmethod
    def _stored(
        cls, in_features: int, out_features: int
    ) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        return {
            "weight": ((out_features, in_features // 2), torch.uint8),
            "scales_and_offsets": ((in_features // _GROUP, out_features, 2), torch.bfloat16),
        }

    @classmethod
    def quantized(cls, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rounds each group to 16 evenly spaced values, of a few ranges and their least-squares fits the nearest."""
        rows = max(1, _BLOCK_ELEMENTS // weight.shape[1])
        codes, scales = zip(*map(_quantize, torch.split(weight, rows)), strict=True)
        return {
            "weight": torch._convert_weight_to_int4pack_for_cpu(torch.cat(codes), 1),
            "scales_and_offsets": torch.cat(scales).transpose(0, 1).contiguous(),
        }

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight, shape (out_features, in_features), not contiguous."""
        codes = unpack(self.weight)
        # Zeros and ones are exact in bfloat16, but the sum of a product and an offset is not.
        scales, offsets = self.scales_and_offsets.float().unbind(-1)
        groups = codes.view(-1, _GROUP, self.out_features).float().sub_(_MIDDLE)
        values = groups.mul_(scales[:, None]).add_(offsets[:, None])
        return values.to(dtype).view(self.in_features, self.out_features).T

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        return torch._weight_int4pack_mm_for_cpu(x, self.weight, _GROUP, self.scales_and_offsets)


def _quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (rows, columns) in int32, and scales and offsets (rows, groups, 2) in bfloat16."""
    groups = weight.float().view(len(weight), -1, _GROUP)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    best = _fit(groups, _scales(low, high, 1.0))
    for share in _SHARES:
        best = _better(best, _fit(groups, _scales(low, high, share)))
    _, codes, scales = best
    return codes.view(weight.shape).int(), scales.bfloat16()


def _scales(low: torch.Tensor, high: torch.Tensor, share: float) -> torch.Tensor:
    """Scale and offset for a share of a range around its middle, rounded as they are stored."""
    scale = ((high - low) * (share / _MAX_CODE)).bfloat16().float()
    offset = (low + high) / 2 + scale / 2
    return torch.cat((scale.clamp_(min=SMALLEST_SCALE), offset.bfloat16().float()), -1)


def _fit(groups: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As `_rounded`, or with what fits its codes best, where that is nearer."""
    rounded = _rounded(groups, scales)
    return _better(rounded, _rounded(groups, _fitted(groups, rounded[1])))


def _fitted(groups: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Scale and offset of least squared error for given codes, rounded as they are stored."""
    steps = codes - _MIDDLE
    middle, mean = steps.mean(-1, keepdim=True), groups.mean(-1, keepdim=True)
    steps -= middle
    spread = steps.square().sum(-1, keepdim=True)
    scale = (steps.mul_(groups - mean).sum(-1, keepdim=True) / spread.clamp_(min=1)).bfloat16().float()
    offset = (mean - scale * middle).bfloat16().float()
    return torch.cat((scale.clamp_(min=SMALLEST_SCALE), offset), -1)


def _better(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Of each group what has the smaller error, the first of what `_rounded` returns."""
    smaller = other[0] < one[0]
    return tuple(torch.where(smaller, *both) for both in zip(other, one, strict=True))


def _rounded(groups: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The squared error of each group with such scales and offsets, its codes, and the scales and offsets."""
    scale, offset = scales[..., :1], scales[..., 1:]
    codes = (groups - offset).div_(scale).round_().add_(_MIDDLE).clamp_(0, _MAX_CODE)
    values = (codes - _MIDDLE).mul_(scale).add_(offset)
    return values.sub_(groups).square_().sum(-1, keepdim=True), codes, scales


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """The codes of a weight that torch has packed.

    Args:
        packed: uint8, shape (out_features, in_features / 2).

    Returns:
        uint8, shape (in_features, out_features).
    """
    rows, columns = packed.shape[0], 2 * packed.shape[1]
    whole = rows - rows % _rows_together()
    parts = packed[:whole].view(-1, columns, _rows_together() // 2), packed[whole:].view(1, columns, -1)
    return torch.cat([_unpack(part) for part in parts if part.numel()], -1)


def _unpack(blocks: torch.Tensor) -> torch.Tensor:
    """Codes (columns, blocks * rows) of blocks of rows: (blocks, columns, rows / 2), two codes in a byte."""
    codes = torch.stack((blocks & 0xF, blocks >> 4), -1).flatten(2)
    codes = codes[..., _order(codes.shape[-1])]
    return codes.transpose(0, 1).flatten(1)


@cache
def _order(rows: int) -> torch.Tensor:
    """Where each of a block's rows is among the codes of one column."""
    return _packed_rows(rows)[:rows].argsort()


@cache
def _rows_together() -> int:
    """How many rows a whole block has: the number before one comes a second time, for the next column."""
    seen = _packed_rows(256).tolist()
    return next(n for n, row in enumerate(seen) if row in seen[:n])


def _packed_rows(rows: int) -> torch.Tensor:
    """The number of the row that each code belongs to, in the order in which they are packed."""
    digits = torch.arange(rows, dtype=torch.int32)[:, None].expand(rows, _GROUP)
    packed = [
        torch._convert_weight_to_int4pack_for_cpu((digits >> shift & 0xF).contiguous(), 1) for shift in (0, 4)
    ]
    low, high = (torch.stack((one & 0xF, one >> 4), -1).flatten().int() for one in packed)
    return low + (high << 4)
