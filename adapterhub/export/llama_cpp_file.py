"""A GGUF file in llama.cpp, through llama-cpp-python: its tokens of texts, its logits, and its quantised forms."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import ExportError
from adapterhub.gguf.quantization import FILE_TYPES
from adapterhub.llama_cpp.bindings import library, reported_error

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def has_llama_cpp() -> bool:
    """Whether llama-cpp-python is installed."""
    return find_spec("llama_cpp") is not None


class LlamaCppFile:
    """A GGUF file loaded by llama.cpp; make it with `opened`."""

    def __init__(self, model: Any, threads: int) -> None:
        self._model, self._threads = model, threads

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text that may spell control tokens, with the ends that the file asks for."""
        llama = library()
        data = text.encode()
        room = len(data) + 8
        ids = (llama.llama_token * room)()
        vocabulary = llama.llama_model_get_vocab(self._model)
        count = llama.llama_tokenize(vocabulary, data, len(data), ids, room, True, True)
        return list(ids[:count])

    def logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[npt.NDArray[np.float32]]:
        """The logits after every token of each sequence, of shape (tokens, vocabulary)."""
        import numpy as np

        llama = library()
        longest = max(map(len, sequences))
        vocabulary = llama.llama_model_get_vocab(self._model)
        width = llama.llama_vocab_n_tokens(vocabulary)
        with self._context(longest) as context:
            batch = llama.llama_batch_init(longest, 0, 1)
            try:
                for sequence in sequences:
                    llama.llama_memory_clear(llama.llama_get_memory(context), True)
                    _fill(batch, sequence)
                    if llama.llama_decode(context, batch):
                        raise ExportError(
                            "llama.cpp could not compute with the file.",
                            hint=f"Its message: {reported_error()}.",
                        )
                    found = llama.llama_get_logits(context)
                    flat = np.ctypeslib.as_array(
                        ctypes.cast(found, ctypes.POINTER(ctypes.c_float)), (len(sequence), width)
                    )
                    yield flat.copy()
            finally:
                llama.llama_batch_free(batch)

    @contextmanager
    def _context(self, tokens: int) -> Iterator[Any]:
        llama = library()
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = tokens
        params.n_threads = params.n_threads_batch = self._threads
        context = llama.llama_init_from_model(self._model, params)
        if not context:
            raise ExportError(
                "llama.cpp could not make a context for the file.", hint=f"Its message: {reported_error()}."
            )
        try:
            yield context
        finally:
            llama.llama_free(context)


@contextmanager
def opened(file: Path, *, vocabulary_only: bool = False, threads: int = 1) -> Iterator[LlamaCppFile]:
    """Loads a GGUF file in llama.cpp.

    Args:
        file: The file.
        vocabulary_only: Whether it is to tokenise only.
        threads: How many threads compute.

    Raises:
        ExportError: llama.cpp cannot load it.
    """
    llama = library()
    params = llama.llama_model_default_params()
    params.vocab_only = vocabulary_only
    params.use_extra_bufts = False  # llama.cpp's repacking for AMX crashes
    params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(os.fsencode(file), params)
    if not model:
        raise ExportError(f"llama.cpp cannot load {file.name!r}.", hint=f"Its message: {reported_error()}.")
    try:
        yield LlamaCppFile(model, threads)
    finally:
        llama.llama_model_free(model)


def _fill(batch: Any, sequence: Sequence[int]) -> None:
    batch.n_tokens = len(sequence)
    for position, token in enumerate(sequence):
        batch.token[position] = token
        batch.pos[position] = position
        batch.n_seq_id[position] = 1
        batch.seq_id[position][0] = 0
        batch.logits[position] = True


def quantize_file(source: Path, out: Path, file_type: str, *, threads: int) -> None:
    """Quantises a 16-bit GGUF file with llama.cpp.

    Args:
        source: The file.
        out: The new file.
        file_type: Such as `"q4_k_m"`.
        threads: How many threads compute.

    Raises:
        ExportError: llama.cpp could not.
    """
    import gguf

    llama = library()
    params = llama.llama_model_quantize_default_params()
    params.ftype = int(gguf.LlamaFileType[FILE_TYPES[file_type]])
    params.nthread = threads
    if llama.llama_model_quantize(os.fsencode(source), os.fsencode(out), params):
        raise ExportError(
            f"llama.cpp could not quantise the model to {file_type}.",
            hint=f"Its message: {reported_error()}. An iostream error is mostly a full disk.",
        )
