"""Comparing an adapter with the base or with other adapters, on held-out data and on prompts.

read_data -> compare -> write_report, record_on_card
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.evaluation.bootstrap import Estimate
    from adapterhub.evaluation.card_figures import record_on_card
    from adapterhub.evaluation.comparing import compare
    from adapterhub.evaluation.comparison import Comparison, ComparisonSettings, Metric, Perplexity
    from adapterhub.evaluation.data import EvaluationData, EvaluationPrompt, read_data
    from adapterhub.evaluation.finetuning import ComparedTraining
    from adapterhub.evaluation.report import write_report

__all__ = [
    "ComparedTraining",
    "Comparison",
    "ComparisonSettings",
    "Estimate",
    "EvaluationData",
    "EvaluationPrompt",
    "Metric",
    "Perplexity",
    "compare",
    "read_data",
    "record_on_card",
    "write_report",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ComparedTraining": "adapterhub.evaluation.finetuning",
        "Comparison": "adapterhub.evaluation.comparison",
        "ComparisonSettings": "adapterhub.evaluation.comparison",
        "Estimate": "adapterhub.evaluation.bootstrap",
        "EvaluationData": "adapterhub.evaluation.data",
        "EvaluationPrompt": "adapterhub.evaluation.data",
        "Metric": "adapterhub.evaluation.comparison",
        "Perplexity": "adapterhub.evaluation.comparison",
        "compare": "adapterhub.evaluation.comparing",
        "read_data": "adapterhub.evaluation.data",
        "record_on_card": "adapterhub.evaluation.card_figures",
        "write_report": "adapterhub.evaluation.report",
    },
)
