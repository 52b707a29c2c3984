"""The weights that an adapter was trained on, where training stored the base in 4 bits: quantised and dequantised.

bitsandbytes quantises blocks of 64 values that follow one another, whatever row they are in; double quantisation then
quantises the blocks' scales, less their mean over the whole weight (QLoRA, arXiv 2305.14314). So a weight can be stored
a few rows at a time, if each time is a multiple of 64 values, and has bitsandbytes' own bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from adapterhub.errors import ExportError

QuantType = Literal["nf4", "fp4"]
QUANT_TYPES: tuple[QuantType, ...] = get_args(QuantType)
_BLOCK = 64  # bitsandbytes' default, which transformers does not change
_SCALES_BLOCK = 256


@dataclass(frozen=True)
class RoundTrip:
    """How training stored the base's linear layers, in bitsandbytes' terms.

    Attributes:
        quant_type: `bnb_4bit_quant_type`.
        double_quant: `bnb_4bit_use_double_quant`.
        dtype: The dtype that training loaded the base in and dequantised to; None is the base's own.
    """

    quant_type: QuantType = "nf4"
    double_quant: bool = True
    dtype: torch.dtype | None = None

    def __str__(self) -> str:
        return f"{self.quant_type}, {'double' if self.double_quant else 'single'} quantisation"

    def store(self, blocks: Iterable[torch.Tensor]) -> StoredWeight:
        """Quantises a weight.

        Args:
            blocks: All its rows in order, some at a time; all but the last of them a multiple of 64 values.
        """
        from bitsandbytes.functional import quantize_4bit

        packed, scales, dtype = [], [], self.dtype or torch.float32
        for block in blocks:
            dtype = self.dtype or block.dtype
            data, state = quantize_4bit(
                block.to(dtype).contiguous(), blocksize=_BLOCK, quant_type=self.quant_type
            )
            packed.append(data)
            scales.append(state.absmax)
        absmax = torch.cat(scales)
        return StoredWeight(
            torch.cat(packed), self._double_quantized(absmax) if self.double_quant else absmax, self, dtype
        )

    @staticmethod
    def _double_quantized(absmax: torch.Tensor) -> torch.Tensor:
        from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

        mean = absmax.mean()
        again: torch.Tensor = dequantize_blockwise(
            *quantize_blockwise(absmax - mean, blocksize=_SCALES_BLOCK)
        )
        return again + mean


@dataclass(frozen=True)
class StoredWeight:
    """A weight in 4 bits.

    Attributes:
        packed: Two values a byte.
        absmax: The scale of each block of 64 values, float32.
        round_trip: How it was stored.
        dtype: The dtype to dequantise to.
    """

    packed: torch.Tensor
    absmax: torch.Tensor
    round_trip: RoundTrip
    dtype: torch.dtype

    def rows(self, start: int, count: int, columns: int) -> torch.Tensor:
        """Dequantises some rows; `start * columns` is a multiple of 64. Shape (count, columns), float32."""
        from bitsandbytes.functional import QuantState, dequantize_4bit

        first, last = start * columns, (start + count) * columns
        state = QuantState(
            absmax=self.absmax[first // _BLOCK : -(last // -_BLOCK)],
            shape=torch.Size((count, columns)),
            dtype=self.dtype,
            blocksize=_BLOCK,
            quant_type=self.round_trip.quant_type,
        )
        values: torch.Tensor = dequantize_4bit(self.packed[first // 2 : -(last // -2)], state)
        return values.reshape(count, columns).float()


def quantized_modules(folder: Path) -> frozenset[str]:
    """The linear layers that transformers stores in 4 bits when it loads a base so; not its output layer.

    Args:
        folder: The base's folder, of a model that transformers knows.
    """
    from transformers import AutoConfig
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    from adapterhub.base.auto_class import text_class
    from adapterhub.base.linear_modules import linear_shape

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = text_class(config).from_config(config, dtype=torch.get_default_dtype())
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    return frozenset(
        name
        for name, module in model.named_modules()
        if linear_shape(module) and should_convert_module(name, kept)
    )


def training_round_trip(settings: Iterable[RoundTrip | None]) -> RoundTrip:
    """The one way in which all parts of a merge were trained.

    Raises:
        ExportError: One was not trained on a 4-bit base, or they differ.
    """
    distinct = list(dict.fromkeys(settings))
    if len(distinct) == 1 and distinct[0]:
        return distinct[0]
    if None in distinct:
        raise ExportError(
            "The adapter's card does not say that it was trained on a base in 4 bits.",
            hint="Leave out --exact. Only if you know that it was, say how with --quant-type nf4.",
        )
    raise ExportError(
        f"The parts of the blend were trained on different weights: {'; '.join(map(str, distinct))}.",
        hint="Leave out --exact: they are merged into the base's own weights.",
    )
