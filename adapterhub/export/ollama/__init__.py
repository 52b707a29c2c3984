"""Ollama: Modelfiles whose template is derived from the chat template, and compared with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.export.ollama.modelfile import GgufFiles, write_modelfiles

__all__ = ["GgufFiles", "write_modelfiles"]

__getattr__, __dir__ = lazy_exports(__name__, dict.fromkeys(__all__, "adapterhub.export.ollama.modelfile"))
