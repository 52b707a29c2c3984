"""llama.cpp as an engine: a GGUF base and LoRA adapters through llama-cpp-python, behind the `Engine` interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.llama_cpp.base import GgufBase, load_gguf_base
    from adapterhub.llama_cpp.engine import LlamaCppEngine

__all__ = ["GgufBase", "LlamaCppEngine", "load_gguf_base"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "GgufBase": "adapterhub.llama_cpp.base",
        "LlamaCppEngine": "adapterhub.llama_cpp.engine",
        "load_gguf_base": "adapterhub.llama_cpp.base",
    },
)
