"""Products with packed 4-bit weights: by `packed_linear.cpp`, or by bitsandbytes' kernel, which has the same bits."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

import torch
from bitsandbytes.functional import QuantState, get_4bit_type, lib

from adapterhub._compiling import CompilingError, compile_library
from adapterhub.config import cache_folder
from adapterhub.errors import EngineError

SOURCE = Path(__file__).with_name("packed_linear.cpp")
_NAMES = {torch.float32: "multiply_packed_float32", torch.bfloat16: "multiply_packed_bfloat16"}
_MIN_PARALLEL_WORK = 1 << 19
"""With fewer products of numbers, one thread is done before the others have begun."""
_SIZE, _POINTER = ctypes.c_int64, ctypes.c_void_p
_SIGNATURE = ctypes.CFUNCTYPE(None, *(_SIZE,) * 3, *(_POINTER,) * 4, *(_SIZE,) * 3)
"""Tokens, out, in; x, weight, scales, y; block of weights with one scale, stride of x, stride of y."""
_log = logging.getLogger(__name__)


class _Layer(ctypes.Structure):
    """`Layer` of `packed_linear.cpp`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "scales", "values")),
        *((name, ctypes.c_int64) for name in ("in_", "out", "block_size")),
    )


class PackedWeight:
    """A packed weight as the compiled functions take it.

    Args:
        weight: As bitsandbytes packs it.
        state: Its scales and settings.
    """

    def __init__(self, weight: torch.Tensor, state: QuantState) -> None:
        self._address = weight.data_ptr()
        self._out, self._in = state.shape
        # Kept, as the structure has their addresses. The weight is not: it may be unpacked, and its memory freed.
        self._scales, self._values = state.absmax, _values(state.quant_type)
        addresses = self._address, self._scales.data_ptr(), self._values.data_ptr()
        self._layer = _Layer(*addresses, self._in, self._out, state.blocksize)

    def is_of(self, weight: torch.Tensor, state: QuantState) -> bool:
        """Whether it stands for the weight and scales that a layer has now."""
        return weight.data_ptr() == self._address and state.absmax is self._scales

    def multiply(self, run: Callable[..., None], x: torch.Tensor, y: torch.Tensor) -> None:
        """Writes the product with some tokens.

        Args:
            run: One of `compiled_products`, that of the dtype of `x`.
            x: Contiguous, shape (..., in_features).
            y: Contiguous, shape (..., out_features), in the same dtype.
        """
        tokens = x.numel() // self._in
        # All threads or one: GNU OpenMP ends the threads that a smaller team leaves out, and torch makes them anew.
        is_long = tokens * self._in * self._out >= _MIN_PARALLEL_WORK
        threads = torch.get_num_threads() if is_long else 1
        run(ctypes.byref(self._layer), tokens, x.data_ptr(), y.data_ptr(), threads)


@cache
def compiled_products() -> dict[torch.dtype, Callable[..., None]]:
    """The compiled functions by the dtype of inputs and outputs; none where they cannot be compiled."""
    try:
        library = ctypes.CDLL(str(compile_library(SOURCE, cache_folder("kernels"))))
        functions = {dtype: _function(library, name) for dtype, name in _NAMES.items()}
        _check(functions[torch.bfloat16])
    except (CompilingError, OSError, AttributeError, EngineError) as error:
        _log.info("Packed 4-bit weights are multiplied by bitsandbytes, which is slower: %s.", error)
        return {}
    return functions


def _function(library: ctypes.CDLL, name: str) -> Callable[..., None]:
    function = getattr(library, name)
    function.argtypes, function.restype = (_POINTER, _SIZE, _POINTER, _POINTER, _SIZE), None
    return cast(Callable[..., None], function)


@torch.inference_mode()
def _check(run: Callable[..., None]) -> None:
    """Compares a function with bitsandbytes' kernel, whose layout of weights another version may change.

    Raises:
        EngineError: A bit differs.
    """
    out, width, block, tokens = 96, 256, 64, 15
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(256, (out, width // 2), generator=generator, dtype=torch.uint8)
    scales = torch.rand(width // block, out, generator=generator).bfloat16()
    x = torch.randn(tokens, width, generator=generator).bfloat16()
    for kind in ("nf4", "fp4"):
        state = QuantState(scales, (out, width), blocksize=block, quant_type=kind)
        y, wanted = x.new_empty(tokens, out), multiply_by_bitsandbytes(weight, state, x)
        PackedWeight(weight, state).multiply(run, x, y)
        if not torch.equal(y, wanted):
            raise EngineError("its products differ from those of bitsandbytes")


def multiply_by_bitsandbytes(weight: torch.Tensor, state: QuantState, x: torch.Tensor) -> torch.Tensor:
    """The product by bitsandbytes' C function; through its Python operator a small product takes 5 times as long.

    Args:
        weight: As bitsandbytes packs it.
        state: Its scales and settings.
        x: Inputs in bfloat16, shape (..., in_features).
    """
    (out_features, in_features), x = state.shape, x.contiguous()
    y = x.new_empty((*x.shape[:-1], out_features))
    _bitsandbytes(state.quant_type)(
        x.numel() // in_features,
        out_features,
        in_features,
        x.data_ptr(),
        weight.data_ptr(),
        state.absmax.data_ptr(),
        y.data_ptr(),
        state.blocksize,
        in_features,
        out_features,
    )
    return y


@cache
def _values(quant_type: str) -> torch.Tensor:
    """What the 16 codes stand for; bitsandbytes' kernel has them too, and ignores those that a file names."""
    values: torch.Tensor = get_4bit_type(quant_type, device="cpu")
    return values.bfloat16()


@cache
def _bitsandbytes(quant_type: str) -> Callable[..., None]:
    function = getattr(lib, f"gemv_4bit_inference_cpu_{quant_type}_bf16")
    return _SIGNATURE(ctypes.cast(function, _POINTER).value or 0)
