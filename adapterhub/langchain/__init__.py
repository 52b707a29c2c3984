"""adapterhub in LangChain. Names are imported when first used (PEP 562)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.langchain.chat_models import ChatAdapterHub
    from adapterhub.langchain.hf_pipeline import huggingface_pipeline
    from adapterhub.langchain.llms import AdapterHubLLM
    from adapterhub.langchain.tools import AdapterToolkit

_EXPORTS = {
    "AdapterHubLLM": "adapterhub.langchain.llms",
    "AdapterToolkit": "adapterhub.langchain.tools",
    "ChatAdapterHub": "adapterhub.langchain.chat_models",
    "huggingface_pipeline": "adapterhub.langchain.hf_pipeline",
}

__all__ = ["AdapterHubLLM", "AdapterToolkit", "ChatAdapterHub", "huggingface_pipeline"]


__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
