"""The registry of adapters: cards, references, and the folder of named, versioned, checked adapters."""

from adapterhub.registry.cards import (
    AdapterCard,
    BaseInfo,
    CardFields,
    Evaluation,
    Lineage,
    Parent,
    PeftInfo,
    PromptProfile,
    Routing,
    Serving,
    Source,
)
from adapterhub.registry.references import Ref
from adapterhub.registry.refs import Alias, Shadow
from adapterhub.registry.store import AdapterRegistry
from adapterhub.registry.verify import Problem

__all__ = [
    "AdapterCard",
    "AdapterRegistry",
    "Alias",
    "BaseInfo",
    "CardFields",
    "Evaluation",
    "Lineage",
    "Parent",
    "PeftInfo",
    "Problem",
    "PromptProfile",
    "Ref",
    "Routing",
    "Serving",
    "Shadow",
    "Source",
]
