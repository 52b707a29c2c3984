"""Which implementation of LoRA's products a device has."""

from __future__ import annotations

import logging
from functools import cache, partial

import torch

from adapterhub._compiling import CompilingError, compile_library, is_switched_off
from adapterhub.config import cache_folder
from adapterhub.errors import EngineError
from adapterhub.lora.kernels.cpu import SOURCE, CpuKernels, CpuLibrary
from adapterhub.lora.kernels.interface import LoraStack, MakeKernels
from adapterhub.lora.kernels.torch_ops import TorchOps
from adapterhub.lora.mapping import LoraMapping

_log = logging.getLogger(__name__)
_MAX_DIFFERENCE = 1e-4
_VARIABLE = "ADAPTERHUB_LORA_KERNELS"


def choose_kernels(device: torch.device) -> MakeKernels:
    """The fastest implementation that works on a device, or torch's where `ADAPTERHUB_LORA_KERNELS=torch`.

    Args:
        device: The device of the stacks.

    Raises:
        ConfigError: The variable has another value than "auto" and "torch".
    """
    if is_switched_off(_VARIABLE):
        return TorchOps
    if device.type == "cpu":
        library, _ = compiled_library()
        return partial(CpuKernels, library) if library else TorchOps
    return gpu_kernels(device) if device.type == "cuda" else TorchOps


def describe_kernels(device: torch.device) -> str:
    """Which implementation `choose_kernels` returns for a device, and on a CPU why.

    Raises:
        ConfigError: As there.
    """
    make = choose_kernels(device)
    if make is not TorchOps:
        return f"compiled, {make.args[0].path}" if isinstance(make, partial) else "triton"
    if device.type != "cpu" or is_switched_off(_VARIABLE):
        return "torch"
    return f"torch: {compiled_library()[1]}"


@cache
def compiled_library() -> tuple[CpuLibrary | None, str]:
    """The compiled functions for CPUs, or the reason why there are none; a process has them once."""
    try:
        library = CpuLibrary(compile_library(SOURCE, cache_folder("kernels")))
        check_kernels(partial(CpuKernels, library), torch.device("cpu"))
    except (CompilingError, OSError, AttributeError, EngineError) as error:
        _log.info("LoRA on the CPU is computed by torch, which is slower: %s.", error)
        return None, str(error)
    return library, ""


@cache  # compiling takes seconds
def gpu_kernels(device: torch.device) -> MakeKernels:
    """Triton's kernels if they are installed and right on a GPU, torch's operations otherwise; the log says why.

    Args:
        device: The GPU; also the CPU, under Triton's interpreter.
    """
    try:
        from adapterhub.lora.kernels.triton import TritonKernels

        check_kernels(TritonKernels, device)
    except Exception as error:  # noqa: BLE001  whatever a compiler or a driver raises
        _log.warning(
            "LoRA on %s is computed by torch: Triton's kernels do not run there (%s).", device, error
        )
        return TorchOps
    return TritonKernels


def check_kernels(make: MakeKernels, device: torch.device) -> None:
    """Compares an implementation with torch's operations on a small step: two adapters beside the base.

    Args:
        make: The implementation.
        device: The device that it has to work on.

    Raises:
        EngineError: The two differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def stack(dtype: torch.dtype) -> LoraStack:
        lora_a, lora_b = random(3, 8, 20).to(dtype).transpose(1, 2), random(3, 8, 24).to(dtype)
        return LoraStack(lora_a, {"layer": lora_b}, {"layer": 0}, rank=8)

    mapping = LoraMapping([(0, 1), (2, 18)], num_base_tokens=1, device=device)
    x, before = random(20, 20), random(20, 24)
    for factors in (torch.float32, torch.bfloat16):
        y, wanted, of_dtype = before.clone(), before.clone(), stack(factors)
        make(of_dtype).add_lora("layer", x, y, mapping)
        TorchOps(of_dtype).add_lora("layer", x, wanted, mapping)
        bound = _MAX_DIFFERENCE * float(wanted.abs().max())
        if not torch.allclose(y, wanted, rtol=_MAX_DIFFERENCE, atol=bound):
            raise EngineError("its sums differ from those of torch")
