"""GGUF files of llama.cpp: how it names and stores weights, and files written from transformers' models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.gguf.architectures import Architecture

__all__ = ["Architecture"]

__getattr__, __dir__ = lazy_exports(__name__, {"Architecture": "adapterhub.gguf.architectures"})
