"""llama.cpp as a contender: a batch of sequences of the bare base, through llama-cpp-python's low-level functions."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch

from adapterhub.gguf.adapter import write_adapter
from adapterhub.gguf.architectures import Architecture
from adapterhub.llama_cpp.bindings import load_adapter, load_model
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.request import StoredLoraRequest
from benchmarks.contenders import Prompts


class LlamaCpp:
    """Greedy decoding of one batch; see `benchmarks.contenders.Contender`.

    Args:
        file: A GGUF file of the shape that the others have.
        rows: Maximum rows of a batch.
        tokens: Maximum tokens of a row.
    """

    def __init__(self, file: str, rows: int, tokens: int) -> None:
        self._loaded = load_model(Path(file), use_gpu=False)  # freed with it
        model = self._model = self._loaded.address
        settings = llama_cpp.llama_context_default_params()
        settings.n_seq_max = rows
        settings.n_ctx = settings.n_batch = rows * tokens
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        self._context = llama_cpp.llama_init_from_model(model, settings)
        self._batch = llama_cpp.llama_batch_init(rows * tokens, 0, 1)
        self._words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def start(self, prompts: Prompts, adapters: Sequence[StoredLoraRequest | None], steps: int) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._length = 0
        self._tokens: list[Sequence[int]] = list(prompts)
        self.step()

    def step(self) -> None:
        wanted = self._fill()
        if llama_cpp.llama_decode(self._context, self._batch):
            raise RuntimeError("llama.cpp could not compute a step.")
        self._length += len(self._tokens[0])
        logits = (llama_cpp.llama_get_logits_ith(self._context, index) for index in wanted)
        self._tokens = [[int(np.ctypeslib.as_array(row, (self._words,)).argmax())] for row in logits]

    def stop(self) -> None:
        self._tokens.clear()

    @property
    def tokens(self) -> list[int]:
        """What the last step gave each row."""
        return [token for (token,) in self._tokens]

    def load_adapter(self, deltas: Mapping[str, LoraDelta], architecture: Architecture) -> Any:
        """Loads an adapter for `apply`.

        Args:
            deltas: Module name in transformers' model -> change.
            architecture: The base's.
        """
        with tempfile.TemporaryFile() as file:
            write_adapter(file, architecture, deltas)
            return load_adapter(self._model, file)

    def apply(self, adapter: Any | None) -> None:
        """Has the steps that follow apply one adapter to all rows, or none."""
        if adapter is None:
            llama_cpp.llama_set_adapters_lora(self._context, None, 0, None)
            return
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
        llama_cpp.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0))

    def _fill(self) -> list[int]:
        """Puts each row's tokens into the batch; returns the indices whose logits are wanted."""
        batch, wanted, index = self._batch, [], 0
        for row, tokens in enumerate(self._tokens):
            for offset, token in enumerate(tokens):
                batch.token[index], batch.pos[index] = token, self._length + offset
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
                batch.logits[index] = offset == len(tokens) - 1
                index += 1
            wanted.append(index - 1)
        batch.n_tokens = index
        return wanted
