"""Which implementation of LoRA's products a device has."""

from __future__ import annotations

import logging
import os
from functools import cache, partial

import torch

from adapterhub.config import cache_folder
from adapterhub.errors import ConfigError
from adapterhub.lora.kernels.compiling import CompilingError, compile_library
from adapterhub.lora.kernels.cpu import SOURCE, CpuKernels, CpuLibrary
from adapterhub.lora.kernels.interface import MakeKernels
from adapterhub.lora.kernels.torch_ops import TorchOps

_VARIABLE = "ADAPTERHUB_LORA_KERNELS"
_log = logging.getLogger(__name__)


def choose_kernels(device: torch.device) -> MakeKernels:
    """The fastest implementation that works on a device, or torch's where `ADAPTERHUB_LORA_KERNELS=torch`.

    Args:
        device: The device of the stacks.

    Raises:
        ConfigError: The variable has another value than "auto" and "torch".
    """
    return _choose(device)[0]


def describe_kernels(device: torch.device) -> str:
    """Which implementation `choose_kernels` returns, and why.

    Args:
        device: The device of the stacks.

    Raises:
        ConfigError: As there.
    """
    return _choose(device)[1]


def _choose(device: torch.device) -> tuple[MakeKernels, str]:
    wanted = os.environ.get(_VARIABLE) or "auto"
    if wanted not in ("auto", "torch"):
        raise ConfigError(f"{_VARIABLE}={wanted} is not known.", hint="It can be auto or torch.")
    if wanted == "torch":
        return TorchOps, f"torch: {_VARIABLE}=torch"
    if device.type == "cpu":
        library, reason = compiled_library()
        if library is not None:
            return partial(CpuKernels, library), f"c++: {library.path}"
        return TorchOps, f"torch: {reason}"
    return TorchOps, "torch"


@cache
def compiled_library() -> tuple[CpuLibrary | None, str]:
    """The compiled functions, or the reason why there are none; a process has them once."""
    try:
        return CpuLibrary(compile_library(SOURCE, cache_folder("kernels"))), ""
    except (CompilingError, OSError, AttributeError) as error:
        _log.info("LoRA is computed by torch's operations, which are slower on a CPU: %s.", error)
        return None, str(error)
