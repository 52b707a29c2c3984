"""Attention of sequences that decode by `decode_attention.cpp`: one call for one layer, on a CPU.

torch's own attention is made for many queries. With one for each sequence it takes two to four times as long, computes
every sequence of a pool up to the length of the longest, and needs a call for each pool, two more to store keys and
values, and a mask.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from adapterhub._compiling import CompilingError, compile_library, is_switched_off
from adapterhub.config import cache_folder
from adapterhub.engine.kv.cache import KVSlotPool
from adapterhub.engine.kv.masks import AttentionMask
from adapterhub.engine.kv.packed_call import PackedCall, QuerySpan
from adapterhub.engine.kv.shape import LayerShape
from adapterhub.errors import EngineError

SOURCE = Path(__file__).with_name("decode_attention.cpp")
_VARIABLE = "ADAPTERHUB_ATTENTION_KERNEL"
_DTYPES = (torch.float32, torch.bfloat16)
_log = logging.getLogger(__name__)


class _Layer(ctypes.Structure):
    """`Layer` of `decode_attention.cpp`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "key_width", "value_width")),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        *((name, ctypes.c_int64) for name in ("q_token", "q_head", "k_token", "k_head", "v_token", "v_head")),
    )


class _Step(ctypes.Structure):
    """`Step` of `decode_attention.cpp`."""

    _fields_ = (
        ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("tokens", "lengths", "capacities")),
        *((name, ctypes.c_int64) for name in ("longest", "keys", "threads")),
    )


class DecodeKernel:
    """The compiled function for one dtype.

    Args:
        run: The function.
        dtype: The dtype of queries, keys and values.
    """

    def __init__(self, run: Callable[..., int], dtype: torch.dtype) -> None:
        self.run, self.dtype = run, dtype

    @classmethod
    def find(cls, device: torch.device, dtype: torch.dtype) -> DecodeKernel | None:
        """The kernel for a device and dtype; None where there is none, or if `ADAPTERHUB_ATTENTION_KERNEL=torch`.

        Raises:
            ConfigError: The variable has another value than "auto" and "torch".
        """
        if is_switched_off(_VARIABLE) or device.type != "cpu" or dtype not in _DTYPES:
            return None
        function, _ = _compiled()
        return cls(function, dtype) if function else None


def describe_decode_attention(device: torch.device) -> str:
    """What computes the attention of sequences that decode on a device, and on a CPU why.

    Raises:
        ConfigError: As for `DecodeKernel.find`.
    """
    if is_switched_off(_VARIABLE) or device.type != "cpu":
        return "torch"
    function, said = _compiled()
    return f"compiled, {said}" if function else f"torch: {said}"


class KernelDecode:
    """The sequences of a step that compute one token each.

    Args:
        kernel: What computes them.
        decoding: Their tokens, by the pool of their slots.

    Raises:
        EngineError: A slot has no room for its token, or has been freed.
    """

    def __init__(self, kernel: DecodeKernel, decoding: Mapping[KVSlotPool, Sequence[QuerySpan]]) -> None:
        self._kernel = kernel
        spans = [span for of_pool in decoding.values() for span in of_pool]
        self._table = np.array(
            [(span.start, span.kv_slot.length, span.kv_slot.pool.capacity) for span in spans], np.int64
        ).T.copy()
        tokens, self._lengths, capacities = self._table
        if (self._lengths >= capacities).any():
            raise EngineError("A KV slot is full.")
        self._addresses = np.concatenate(
            [pool.addresses([span.kv_slot.index for span in of_pool]) for pool, of_pool in decoding.items()],
            1,
        )
        # Whose addresses these are: they stay, even if the cache is cleared meanwhile.
        self._tensors = [tensor for pool in decoding for tensor in pool.tensors]
        self._shapes = spans[0].kv_slot.pool.shape.layers
        self._end, self._longest = int(tokens.max()) + 1, int(self._lengths.max()) + 1
        start, row = _address(self._table), self._table.strides[0]
        self._step = _Step(
            len(spans),
            start,
            start + row,
            start + 2 * row,
            self._longest,
            int(self._lengths.sum()) + len(spans),
            torch.get_num_threads(),
        )
        self._first_layer, self._row = _address(self._addresses), self._addresses.strides[0]
        self._layers: dict[object, _Layer] = {}
        self._masks: dict[AttentionMask, torch.Tensor] = {}

    def attend(self, call: PackedCall) -> None:
        """Stores the keys and values of their tokens in a layer, and writes the output of these tokens."""
        layer, q, k, v = call.layer, self._rows(call.q), self._rows(call.k), self._rows(call.v)
        mask = self._mask(layer.mask.up_to(self._longest))
        sinks = None if call.sinks is None else call.sinks.float().contiguous()
        keys = self._first_layer + layer.kv_layer * self._row
        failed = self._kernel.run(
            self._kernel.dtype is torch.bfloat16,
            ctypes.addressof(self._layer(call, q, k, v)),
            ctypes.addressof(self._step),
            q.data_ptr(),
            None if layer.shares_kv else k.data_ptr(),
            None if layer.shares_kv else v.data_ptr(),
            keys,
            keys + len(self._shapes) * self._row,
            None if mask is None else mask.data_ptr(),
            self._longest,
            None if sinks is None else sinks.data_ptr(),
            call.out.data_ptr(),
        )
        if failed:
            raise MemoryError("There is no memory for the scores of attention.")

    def _rows(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype is not self._kernel.dtype:
            raise EngineError(
                f"Attention is called in {tensor.dtype}, and the KV cache is {self._kernel.dtype}."
            )
        return tensor if tensor.stride(2) == 1 else tensor.contiguous()

    def _layer(self, call: PackedCall, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> _Layer:
        """Most layers of a model are alike."""
        shape = self._shapes[call.layer.kv_layer]
        key = shape, q.shape, q.stride(), k.shape, k.stride(), v.shape, v.stride(), call.scale, call.softcap
        if call.sinks is not None and call.sinks.shape != q.shape[1:2]:
            raise EngineError(
                f"Attention is called with {q.shape[1]} heads, and has {len(call.sinks)} sinks."
            )
        if key not in self._layers:
            self._check(shape, q, k, v)
            strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2])
            sizes = q.shape[1], shape.num_kv_heads, shape.key_width, shape.value_width
            self._layers[key] = _Layer(*sizes, call.scale, call.softcap or 0.0, *strides)
        return self._layers[key]

    def _check(self, shape: LayerShape, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        tokens, heads, width = q.shape
        stored = (
            (tokens, shape.num_kv_heads, shape.key_width),
            (tokens, shape.num_kv_heads, shape.value_width),
        )
        fits = (k.shape, v.shape) == stored and width == shape.key_width and tokens >= self._end
        if not fits or heads % shape.num_kv_heads:
            raise EngineError(
                f"Attention is called with {q.shape}, {k.shape}, {v.shape}, and the KV cache has {shape}."
            )

    def _mask(self, mask: AttentionMask) -> torch.Tensor | None:
        """What to add to scores, shape (sequences, longest); None if a token attends to all before it."""
        if mask.hides_nothing:
            return None
        if mask not in self._masks:
            queries, keys = torch.from_numpy(self._lengths)[:, None], torch.arange(self._longest)
            added = mask.additive(queries, keys, torch.float32)
            self._masks[mask] = added.broadcast_to(len(queries), self._longest).contiguous()
        return self._masks[mask]


@cache
def _compiled() -> tuple[Callable[..., int] | None, str]:
    """The function and its library, or the reason why there is none; it is compiled at the first use on a machine."""
    try:
        library = compile_library(SOURCE, cache_folder("kernels"))
        function = ctypes.CDLL(str(library)).decode_attention
    except (CompilingError, OSError, AttributeError) as error:
        _log.info("Attention of sequences that decode is computed by torch, which is slower: %s.", error)
        return None, str(error)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = (ctypes.c_int, *[pointer] * 8, number, pointer, pointer)
    function.restype = ctypes.c_int
    return function, str(library)


def _address(array: npt.NDArray[np.int64]) -> int:
    return int(array.__array_interface__["data"][0])
