"""The tokens of one call of llama.cpp, in arrays that are filled again for each."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from adapterhub.llama_cpp.bindings import library


class LlamaBatch:
    """A `llama_batch` over arrays of numpy's.

    Args:
        max_tokens: Maximum number of tokens.
    """

    def __init__(self, max_tokens: int) -> None:
        self._tokens, self._positions, self._sequences = np.zeros((3, max_tokens), np.int32)
        self._count = np.arange(max_tokens, dtype=np.int32)
        self._wanted = np.zeros(max_tokens, np.int8)
        self._ones = np.ones(max_tokens, np.int32)  # each token belongs to one sequence
        start, size = self._sequences.ctypes.data, self._sequences.itemsize
        self._addresses = np.arange(start, start + max_tokens * size, size, dtype=np.uintp)
        self._batch = library().llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._ones, ctypes.c_int32),
            seq_id=_pointer(self._addresses, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._wanted, ctypes.c_int8),
        )

    @property
    def native(self) -> Any:
        """The structure that `llama_decode` takes."""
        return self._batch

    def clear(self) -> None:
        """Removes all tokens."""
        self._batch.n_tokens = 0

    def add(self, seq_id: int, position: int, token_ids: Sequence[int], wanted: Sequence[int]) -> None:
        """Adds the next tokens of a sequence.

        Args:
            seq_id: llama.cpp's number of the sequence.
            position: The place of the first token in it, from 0.
            token_ids: The tokens.
            wanted: The places among them, from 0, of those whose logits are computed.
        """
        start = self._batch.n_tokens
        end = self._batch.n_tokens = start + len(token_ids)
        self._tokens[start:end] = token_ids
        self._positions[start:end] = self._count[: end - start] + position
        self._sequences[start:end] = seq_id
        self._wanted[start:end] = 0
        for place in wanted:
            self._wanted[start + place] = 1


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
