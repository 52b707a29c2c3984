"""adapterhub in LangChain. Names are imported when first used (PEP 562)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.langchain.chat import ChatAdapterHub
    from adapterhub.langchain.llm import AdapterHubLLM
    from adapterhub.langchain.pipeline import huggingface_pipeline
    from adapterhub.langchain.tools import AdapterToolkit

_EXPORTS = {
    "AdapterHubLLM": "adapterhub.langchain.llm",
    "AdapterToolkit": "adapterhub.langchain.tools",
    "ChatAdapterHub": "adapterhub.langchain.chat",
    "huggingface_pipeline": "adapterhub.langchain.pipeline",
}

__all__ = ["AdapterHubLLM", "AdapterToolkit", "ChatAdapterHub", "huggingface_pipeline"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
