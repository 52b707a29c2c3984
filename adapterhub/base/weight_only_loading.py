"""transformers' hooks for weight-only quantisation: each weight is quantised when it is read, and then dropped.

So the memory in loading is that of the quantised model and of one weight as the files have it.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from adapterhub.base.int4 import Int4Linear
from adapterhub.base.linear_modules import linear_shape
from adapterhub.base.weight_only import Int8WeightOnlyLinear, WeightOnlyLinear, WeightOnlyQuantization

_log = logging.getLogger(__name__)
_METHOD = "adapterhub_weight_only"
_KINDS: dict[str, type[WeightOnlyLinear]] = {"int4": Int4Linear, "int8_weight_only": Int8WeightOnlyLinear}


@register_quantization_config(_METHOD)
class WeightOnlyConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What transformers' `from_pretrained` takes as `quantization_config`.

    Args:
        quantization: How the weights of linear layers but the output head are stored.
        dense_dtype: See `WeightOnlyLinear`.
    """

    def __init__(self, quantization: WeightOnlyQuantization, dense_dtype: torch.dtype | None = None) -> None:
        self.quant_method = _METHOD
        self.quantization, self.dense_dtype = quantization, dense_dtype


@register_quantizer(_METHOD)
class WeightOnlyQuantizer(HfQuantizer):  # type: ignore[misc]
    """Replaces linear layers before transformers reads the weights."""

    quantization_config: WeightOnlyConfig

    def is_serializable(self) -> bool:
        """A base stays 16-bit in its files."""
        return False

    @property
    def is_trainable(self) -> bool:
        """No gradient flows through the kernels."""
        return False

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Whether a weight in the files is one that a replaced layer stores quantised."""
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, WeightOnlyLinear) and name == "weight"

    def get_quantize_ops(self) -> ConversionOps:
        """What quantises a weight."""
        return _Quantize()

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        kind = _KINDS[self.quantization_config.quantization]
        kept = self.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        modules = [
            (name, module)
            for name, module in model.named_modules()
            if type(module) in (nn.Linear, Conv1D) and should_convert_module(name, kept)
        ]
        left = []
        for name, module in modules:
            out_features, in_features = linear_shape(module) or (0, 0)
            if not kind.fits(in_features, out_features):
                left.append(name)
                continue
            layer = kind(in_features, out_features, module.bias)
            layer.dense_dtype = self.quantization_config.dense_dtype
            layer.transposed = isinstance(module, Conv1D)
            # Nothing is to be drawn at random where the files lack it: that is refused later.
            setattr(layer, "_is_hf_initialized", True)  # noqa: B010  transformers' mark is no field of ours
            model.set_submodule(name, layer)
        if left:
            _log.warning(
                "%d of %d linear layers stay unquantised, such as %s: torch's %s kernel does not take their sizes.",
                len(left),
                len(modules),
                left[0],
                kind.quantization,
            )


class _Quantize(ConversionOps):  # type: ignore[misc]
    """One weight of the files -> what its layer stores."""

    def convert(self, input_dict: dict[str, Any], model: Any = None, **_: Any) -> dict[str, torch.Tensor]:
        result = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            module, _ = get_module_from_name(model, name)
            stored = module.quantized(weight.T.contiguous() if module.transposed else weight)
            result.update({f"{name.removesuffix('weight')}{part}": tensor for part, tensor in stored.items()})
        return result
