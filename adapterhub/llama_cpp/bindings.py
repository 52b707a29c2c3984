"""llama-cpp-python: imported when it is needed, its messages kept, its models and adapters opened.

Reference: `llama.h` of llama.cpp, https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import weakref
from collections import deque
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from adapterhub.errors import ConfigError, EngineError

_log = logging.getLogger(__name__)
_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_errors: deque[str] = deque(maxlen=8)
"""What llama.cpp has reported; its functions return no reasons."""


@cache
def library() -> ModuleType:
    """The package `llama_cpp`, which prints nothing from then on: its messages go to this module's logger.

    Raises:
        ConfigError: llama-cpp-python is not installed, or cannot be loaded.
    """
    try:
        llama = import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"llama.cpp is not available: {error}.",
            hint="Install llama-cpp-python, `pip install 'adapterhub[llama]'`; it is built from source in ten minutes.",
        ) from error
    llama.llama_log_set(_log_callback(llama), None)
    llama.llama_backend_init()
    return llama


@cache  # ctypes does not keep it alive
def _log_callback(llama: ModuleType) -> Any:
    def note(level: int, text: bytes, _: Any) -> None:
        message = text.decode(errors="replace").strip()
        _log.debug("%s", message)
        if level == _ERROR_LEVEL:
            _errors.append(message)

    return llama.llama_log_callback(note)


def reported_error() -> str:
    """The first error that llama.cpp has reported since the last call, without the function that it came from."""
    errors = [_errors.popleft() for _ in range(len(_errors))]
    return errors[0].split(": ", 1)[-1] if errors else "it gives no reason"


class LlamaModel:
    """A model in llama.cpp's memory, which is freed when it is garbage or before.

    Args:
        address: Where llama.cpp has it.

    Attributes:
        free: Frees it; may be called twice.
    """

    def __init__(self, address: int) -> None:
        self._address, self._claimed = address, threading.Lock()
        self.free = weakref.finalize(self, library().llama_model_free, address)
        self.free.atexit = False  # a daemon thread may still compute

    @property
    def address(self) -> int:
        """Where llama.cpp has it, for calls that only ask."""
        return self._address

    def claim(self) -> int:
        """Its address, for the one engine that computes with it and frees it; any thread may call it.

        Raises:
            EngineError: It has an owner already.
        """
        if not self._claimed.acquire(blocking=False):
            raise EngineError(
                "The base belongs to another engine, which frees it.",
                hint="Load it again with load_gguf_base for each engine.",
            )
        return self._address


def load_model(file: Path, *, use_gpu: bool) -> LlamaModel:
    """Loads a GGUF file.

    Args:
        file: The file.
        use_gpu: Put its layers on a GPU if llama.cpp was built for one.

    Raises:
        ConfigError: llama.cpp cannot load it.
        EngineError: It is not a model that writes text from left to right with attention.
    """
    llama = library()
    settings = llama.llama_model_default_params()
    if not use_gpu:
        settings.n_gpu_layers = 0
    if b"AMX_INT8 = 1" in llama.llama_print_system_info():
        settings.use_extra_bufts = False  # llama.cpp crashes in its AMX kernels
    _errors.clear()
    address = llama.llama_model_load_from_file(os.fsencode(file), settings)
    if not address:
        raise ConfigError(
            f"llama.cpp cannot load {file.name!r}: {reported_error()}.",
            hint="The file is damaged, or of an architecture that the installed llama-cpp-python does not know.",
        )
    model = LlamaModel(address)
    if (
        llama.llama_model_is_recurrent(address)
        or llama.llama_model_is_hybrid(address)
        or llama.llama_model_is_diffusion(address)
        or llama.llama_model_has_encoder(address)
    ):
        raise EngineError(
            f"The model in {file.name!r} cannot be served: it is not a decoder with attention in every layer.",
            hint="Hybrid, recurrent, diffusion and encoder models are not supported.",
        )
    return model


def metadata(model: LlamaModel, key: str) -> str | None:
    """A text in a file's metadata, of at most 99 bytes; None if there is no such text."""
    text = ctypes.create_string_buffer(100)
    length = library().llama_model_meta_val_str(model.address, key.encode(), text, len(text))
    return text.value.decode(errors="replace") if 0 <= length < len(text) else None


def load_adapter(model: int, file: BinaryIO) -> Any:
    """Loads an adapter; the caller frees it with `llama_adapter_lora_free`, or with its model.

    Args:
        model: The address of its model.
        file: A GGUF file, which may have no name; it is read from its start.

    Raises:
        EngineError: llama.cpp cannot load it.
    """
    file.seek(0)
    c = ctypes.CDLL(None)
    c.fdopen.restype, c.fdopen.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_char_p]
    c.fclose.argtypes = [ctypes.c_void_p]
    _errors.clear()
    stream = c.fdopen(os.dup(file.fileno()), b"rb")
    try:
        adapter = library().llama_adapter_lora_init_from_file_ptr(model, stream)
    finally:
        c.fclose(stream)
    if not adapter:
        raise EngineError(f"llama.cpp cannot load the adapter: {reported_error()}.")
    return adapter
