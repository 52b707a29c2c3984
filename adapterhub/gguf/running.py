"""A GGUF file in llama.cpp, through llama-cpp-python: what it makes of texts, and the logits of token ids."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import ExportError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def _library() -> Any:
    """The package, which prints errors only from then on."""
    import llama_cpp

    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    return llama_cpp


def has_llama_cpp() -> bool:
    """Whether llama-cpp-python is installed."""
    return find_spec("llama_cpp") is not None


class LlamaCppFile:
    """A GGUF file loaded by llama.cpp; make it with `opened`."""

    def __init__(self, model: Any, threads: int) -> None:
        self._model, self._threads = model, threads

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text that may spell control tokens, with the ends that the file asks for."""
        llama_cpp = _library()

        data = text.encode()
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, room, True, True)
        return list(ids[:count])

    def logits(self, sequences: Sequence[Sequence[int]]) -> Iterator[npt.NDArray[np.float32]]:
        """The logits after every token of each sequence, of shape (tokens, vocabulary)."""
        llama_cpp = _library()
        import numpy as np

        longest = max(map(len, sequences))
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        width = llama_cpp.llama_vocab_n_tokens(vocabulary)
        with self._context(longest) as context:
            batch = llama_cpp.llama_batch_init(longest, 0, 1)
            try:
                for sequence in sequences:
                    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
                    _fill(batch, sequence)
                    if llama_cpp.llama_decode(context, batch):
                        raise ExportError(
                            "llama.cpp could not compute with the file.", hint="See its message."
                        )
                    found = llama_cpp.llama_get_logits(context)
                    flat = np.ctypeslib.as_array(
                        ctypes.cast(found, ctypes.POINTER(ctypes.c_float)), (len(sequence), width)
                    )
                    yield flat.copy()
            finally:
                llama_cpp.llama_batch_free(batch)

    @contextmanager
    def _context(self, tokens: int) -> Iterator[Any]:
        llama_cpp = _library()

        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = tokens
        params.n_threads = params.n_threads_batch = self._threads
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise ExportError("llama.cpp could not make a context for the file.", hint="See its message.")
        try:
            yield context
        finally:
            llama_cpp.llama_free(context)


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
    llama_cpp = _library()

    params = llama_cpp.llama_model_default_params()
    params.vocab_only = vocabulary_only
    params.use_extra_bufts = False  # llama.cpp's repacking for AMX crashes
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
    if not model:
        raise ExportError(f"llama.cpp cannot load {file.name!r}.", hint="See its message; please report it.")
    try:
        yield LlamaCppFile(model, threads)
    finally:
        llama_cpp.llama_model_free(model)


def _fill(batch: Any, sequence: Sequence[int]) -> None:
    batch.n_tokens = len(sequence)
    for position, token in enumerate(sequence):
        batch.token[position] = token
        batch.pos[position] = position
        batch.n_seq_id[position] = 1
        batch.seq_id[position][0] = 0
        batch.logits[position] = True
