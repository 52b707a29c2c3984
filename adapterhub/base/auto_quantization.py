"""Which quantisation `"auto"` is: the one of 4 bits that the processor multiplies fastest."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from bitsandbytes.functional import has_avx512bf16

_INT4_KERNELS = ("AVX2", "AVX512")
"""What torch has its int4 kernel written for; elsewhere it is slower than dequantising."""


class AutoQuantization(NamedTuple):
    """What `"auto"` stands for.

    Attributes:
        quantization: How the linear layers are stored.
        reason: Why, in words.
    """

    quantization: Literal["nf4", "int4"]
    reason: str


def auto_quantization(device: str, *, training: bool = False) -> AutoQuantization:
    """Chooses by what multiplies 4-bit weights on a device.

    Args:
        device: `"cpu"` or one that begins with `"cuda"`.
        training: Gradients have to flow through the weights.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if training:
        return AutoQuantization("nf4", "training goes through bitsandbytes")
    if device != "cpu":
        return AutoQuantization("nf4", "bitsandbytes has a kernel for GPUs")
    if has_avx512bf16():
        return AutoQuantization("nf4", "bitsandbytes has a kernel for this processor, which has AVX512-BF16")
    if capability in _INT4_KERNELS:
        return AutoQuantization(
            "int4",
            f"torch has a kernel for this processor, which has {capability}; bitsandbytes' needs AVX512-BF16",
        )
    return AutoQuantization("nf4", f"no kernel of 4 bits is for this processor ({capability})")
