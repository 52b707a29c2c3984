"""Which adapter should answer a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.routing.analysis.evaluation import Evaluation
    from adapterhub.routing.analysis.explanation import Explanation
    from adapterhub.routing.analysis.health import Finding
    from adapterhub.routing.classifier.calibration import Policy
    from adapterhub.routing.classifier.embeddings import TokenEmbeddings
    from adapterhub.routing.decision import RouteDecision
    from adapterhub.routing.feedback.decision_log import DecisionLog
    from adapterhub.routing.filters import RouteFilter
    from adapterhub.routing.registry_sync import SyncedRouter
    from adapterhub.routing.router import AdapterRouter

__all__ = [
    "AdapterRouter",
    "DecisionLog",
    "Evaluation",
    "Explanation",
    "Finding",
    "Policy",
    "RouteDecision",
    "RouteFilter",
    "SyncedRouter",
    "TokenEmbeddings",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "AdapterRouter": "adapterhub.routing.router",
        "DecisionLog": "adapterhub.routing.feedback.decision_log",
        "Evaluation": "adapterhub.routing.analysis.evaluation",
        "Explanation": "adapterhub.routing.analysis.explanation",
        "Finding": "adapterhub.routing.analysis.health",
        "Policy": "adapterhub.routing.classifier.calibration",
        "RouteDecision": "adapterhub.routing.decision",
        "RouteFilter": "adapterhub.routing.filters",
        "SyncedRouter": "adapterhub.routing.registry_sync",
        "TokenEmbeddings": "adapterhub.routing.classifier.embeddings",
    },
)
