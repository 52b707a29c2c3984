"""adapterhub in LangChain. Names are imported when first used (PEP 562)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

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


__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
