"""Choosing the adapter for a request: rules, a text classifier, its evaluation, and learning from corrections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.routing.analysis.evaluation import Evaluation, evaluate
    from adapterhub.routing.analysis.explanation import Evidence, Explanation
    from adapterhub.routing.analysis.health import Finding, findings_before_fit
    from adapterhub.routing.analysis.report import evaluate_held_out, html_report, measures
    from adapterhub.routing.classifier.calibration import Policy
    from adapterhub.routing.classifier.embeddings import TokenEmbeddings
    from adapterhub.routing.classifier.encoding import Encoder
    from adapterhub.routing.decision import RouteDecision
    from adapterhub.routing.feedback.corrections import (
        CardCorrections,
        Correction,
        learn_corrections,
        read_corrections,
    )
    from adapterhub.routing.feedback.decision_log import DecisionLog
    from adapterhub.routing.feedback.labelled_requests import LabelledRequests, read_labelled_requests
    from adapterhub.routing.filters import RouteFilter
    from adapterhub.routing.registry_sync import SyncedRouter, candidates, current_router, saved_router
    from adapterhub.routing.router import AdapterRouter
    from adapterhub.routing.routes import Route, routes_from_cards

__all__ = [
    "AdapterRouter",
    "CardCorrections",
    "Correction",
    "DecisionLog",
    "Encoder",
    "Evaluation",
    "Evidence",
    "Explanation",
    "Finding",
    "LabelledRequests",
    "Policy",
    "Route",
    "RouteDecision",
    "RouteFilter",
    "SyncedRouter",
    "TokenEmbeddings",
    "candidates",
    "current_router",
    "evaluate",
    "evaluate_held_out",
    "findings_before_fit",
    "html_report",
    "learn_corrections",
    "measures",
    "read_corrections",
    "read_labelled_requests",
    "routes_from_cards",
    "saved_router",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "AdapterRouter": "adapterhub.routing.router",
        "CardCorrections": "adapterhub.routing.feedback.corrections",
        "Correction": "adapterhub.routing.feedback.corrections",
        "DecisionLog": "adapterhub.routing.feedback.decision_log",
        "Encoder": "adapterhub.routing.classifier.encoding",
        "Evaluation": "adapterhub.routing.analysis.evaluation",
        "Evidence": "adapterhub.routing.analysis.explanation",
        "Explanation": "adapterhub.routing.analysis.explanation",
        "Finding": "adapterhub.routing.analysis.health",
        "LabelledRequests": "adapterhub.routing.feedback.labelled_requests",
        "Policy": "adapterhub.routing.classifier.calibration",
        "Route": "adapterhub.routing.routes",
        "RouteDecision": "adapterhub.routing.decision",
        "RouteFilter": "adapterhub.routing.filters",
        "SyncedRouter": "adapterhub.routing.registry_sync",
        "TokenEmbeddings": "adapterhub.routing.classifier.embeddings",
        "candidates": "adapterhub.routing.registry_sync",
        "current_router": "adapterhub.routing.registry_sync",
        "evaluate": "adapterhub.routing.analysis.evaluation",
        "evaluate_held_out": "adapterhub.routing.analysis.report",
        "findings_before_fit": "adapterhub.routing.analysis.health",
        "html_report": "adapterhub.routing.analysis.report",
        "learn_corrections": "adapterhub.routing.feedback.corrections",
        "measures": "adapterhub.routing.analysis.report",
        "read_corrections": "adapterhub.routing.feedback.corrections",
        "read_labelled_requests": "adapterhub.routing.feedback.labelled_requests",
        "routes_from_cards": "adapterhub.routing.routes",
        "saved_router": "adapterhub.routing.registry_sync",
    },
)
