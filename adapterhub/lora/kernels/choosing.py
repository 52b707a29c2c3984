"""Which implementation of LoRA's products a device has."""

from __future__ import annotations

import torch

from adapterhub.lora.kernels.interface import MakeKernels
from adapterhub.lora.kernels.torch_ops import TorchOps


def choose_kernels(device: torch.device) -> MakeKernels:
    """The fastest implementation that works on a device.

    Args:
        device: The device of the stacks.
    """
    return TorchOps
