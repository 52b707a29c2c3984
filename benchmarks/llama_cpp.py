"""llama.cpp as a contender: a batch of sequences of the bare base, through llama-cpp-python's low-level functions."""

from __future__ import annotations

from collections.abc import Sequence

import llama_cpp
import numpy as np
import torch

from adapterhub.engine.interface import LoraRequest
from benchmarks.contenders import Prompts


class LlamaCpp:
    """Greedy decoding of one batch; see `benchmarks.contenders.Contender`.

    Args:
        file: A GGUF file of the shape that the others have.
        rows: Most rows of a batch.
        tokens: Most tokens of a row.
    """

    def __init__(self, file: str, rows: int, tokens: int) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            file.encode(), llama_cpp.llama_model_default_params()
        )
        if self._model is None:
            raise ValueError(f"llama.cpp cannot load {file}.")
        settings = llama_cpp.llama_context_default_params()
        settings.n_seq_max = rows
        settings.n_ctx = settings.n_batch = rows * tokens
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._batch = llama_cpp.llama_batch_init(rows * tokens, 0, 1)
        self._words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def start(self, prompts: Prompts, adapters: Sequence[LoraRequest | None], steps: int) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._length = 0
        self._tokens: list[Sequence[int]] = list(prompts)
        self.step()

    def step(self) -> None:
        wanted = self._fill()
        if llama_cpp.llama_decode(self._context, self._batch):
            raise RuntimeError("llama.cpp could not compute a step.")
        self._length += len(self._tokens[0])
        logits = (llama_cpp.llama_get_logits_ith(self._context, position) for position in wanted)
        self._tokens = [[int(np.ctypeslib.as_array(row, (self._words,)).argmax())] for row in logits]

    def stop(self) -> None:
        self._tokens.clear()

    def _fill(self) -> list[int]:
        """Puts each row's tokens into the batch; returns the positions whose logits are wanted."""
        batch, wanted, position = self._batch, [], 0
        for row, tokens in enumerate(self._tokens):
            for offset, token in enumerate(tokens):
                batch.token[position], batch.pos[position] = token, self._length + offset
                batch.n_seq_id[position], batch.seq_id[position][0] = 1, row
                batch.logits[position] = offset == len(tokens) - 1
                position += 1
            wanted.append(position - 1)
        batch.n_tokens = position
        return wanted
