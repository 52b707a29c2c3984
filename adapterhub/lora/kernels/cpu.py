"""LoRA's products by `lora.cpp`: one call for one layer, token by token, on a CPU.

torch's operations cost more to start than such thin products take, and bfloat16 ones many times more. The compiled
functions read the factors as they are, in bfloat16 also for tokens in float32, sum in float32 and round once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from adapterhub.lora.kernels.interface import LoraStack
from adapterhub.lora.kernels.torch_ops import TorchOps
from adapterhub.lora.mapping import LoraMapping

SOURCE = Path(__file__).with_name("lora.cpp")
_NAMES = {
    (torch.float32, torch.float32): "float32",
    (torch.bfloat16, torch.bfloat16): "bfloat16",
    (torch.bfloat16, torch.float32): "bfloat16_to_float32",
}
_MAX_TOKENS_PER_ADAPTER = 32
"""With more tokens for one adapter, torch's products of matrices are faster."""
_MIN_PARALLEL_WORK = 1 << 17
"""With fewer products of numbers, one thread is done before the others have begun."""


class _Layer(ctypes.Structure):
    """`Layer` of `lora.cpp`."""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("a_slot_stride", "b_slot_stride", "in_", "out", "rank")),
    )


class CpuLibrary:
    """The functions of the compiled `lora.cpp`.

    Args:
        path: The library.

    Raises:
        OSError: It cannot be loaded.

    Attributes:
        path: The library.
        functions: By the dtype of the factors, and that of inputs and outputs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        library = ctypes.CDLL(str(path))
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self.functions: dict[tuple[torch.dtype, torch.dtype], Callable[..., None]] = {}
        for dtypes, name in _NAMES.items():
            function = getattr(library, f"add_lora_{name}")
            function.argtypes = (pointer, pointer, number, pointer, number, pointer, number, number)
            function.restype = None
            self.functions[dtypes] = function


class CpuKernels:
    """`LoraKernels` of `lora.cpp`, and of torch for what that one does not compute: long runs, other dtypes, training.

    Args:
        library: The compiled functions.
        stack: The factors, in host memory.
    """

    name = "c++"
    can_replay = False
    reads_bfloat16 = True

    def __init__(self, library: CpuLibrary, stack: LoraStack) -> None:
        self._torch = TorchOps(stack)
        self._functions = {
            tokens: function
            for (factors, tokens), function in library.functions.items()
            if factors is stack.lora_a.dtype
        }
        self._slots, self._in, self._rank = len(stack.lora_a), stack.lora_a.shape[1], stack.rank
        # The structures hold addresses in the stack, which lives as long as they do.
        self._stack = stack
        self._structures = {name: self._structure(name) for name in stack.lora_b}
        self._layers: Mapping[str, tuple[int, int]] = {
            name: (ctypes.addressof(structure), structure.out) for name, structure in self._structures.items()
        }

    def add_lora(self, layer: str, x: torch.Tensor, y: torch.Tensor, mapping: LoraMapping) -> None:
        """Adds the adapters' products to a layer's output; see `LoraKernels.add_lora`."""
        tokens, width = y.shape
        table = mapping.run_table(tokens)
        run = self._functions.get(y.dtype)
        long = table.longest > _MAX_TOKENS_PER_ADAPTER
        if run is None or long or x.dtype is not y.dtype or y.requires_grad:
            self._torch.add_lora(layer, x, y, mapping)
            return
        structure, out = self._layers[layer]
        if x.ndim != 2:
            x = x.reshape(-1, x.shape[-1])
        if x.stride(1) != 1:
            x = x.contiguous()
        fits = x.shape == (tokens, self._in) and width == out and y.stride(1) == 1
        if not fits or mapping.end_slot > self._slots:
            raise ValueError(
                f"The layer {layer} has an input of {tuple(x.shape)} and an output of {tuple(y.shape)}."
            )
        # All threads or one: GNU OpenMP ends the threads that a smaller team leaves out, and torch makes them anew.
        threads = table.threads if table.tokens * self._rank * (self._in + out) >= _MIN_PARALLEL_WORK else 1
        run(
            structure,
            table.address,
            table.count,
            x.data_ptr(),
            x.stride(0),
            y.data_ptr(),
            y.stride(0),
            threads,
        )

    def _structure(self, name: str) -> Any:
        stack = self._stack
        a, b = stack.lora_a[:, :, stack.columns[name] :], stack.lora_b[name]
        return _Layer(
            a.data_ptr(), b.data_ptr(), a.stride(0), b.stride(0), a.shape[1], b.shape[2], stack.rank
        )
