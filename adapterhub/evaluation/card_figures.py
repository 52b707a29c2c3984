"""A comparison's figures as evaluation results on the adapter's card."""

from __future__ import annotations

import math
from collections.abc import Iterator

from adapterhub.evaluation.bootstrap import Estimate
from adapterhub.evaluation.comparison import Comparison
from adapterhub.registry import AdapterCard, AdapterRegistry, CardFields, Evaluation

_SPLIT = "held-out"
_NOT_RESULTS = frozenset({"tokens", "characters", "truncated"})


def record_on_card(comparison: Comparison, registry: AdapterRegistry) -> AdapterCard:
    """Stores a comparison's figures on the card of its adapter, in place of earlier ones on the same data.

    Args:
        comparison: From `compare`.
        registry: Where the adapter is.

    Returns:
        The new card.

    Raises:
        AdapterNotFoundError: The version was removed meanwhile.
        InvalidRequestError: It is a blend, which has no card.
        RegistryError: The registry cannot be written.
    """
    figures = list(_figures(comparison))
    measured = {(one.metric_type, one.dataset_name, one.dataset_split) for one in figures}

    def change(card: AdapterCard) -> CardFields:
        others = [
            one
            for one in card.evaluation
            if (one.metric_type, one.dataset_name, one.dataset_split) not in measured
        ]
        return {"evaluation": [*others, *figures]}

    return registry.revise(comparison.adapter, change)


def _figures(comparison: Comparison) -> Iterator[Evaluation]:
    own = comparison.perplexities.get(comparison.adapter)
    if own:
        others = {name: one.estimate.value for name, one in comparison.perplexities.items()}
        yield _figure(comparison, 0, "perplexity", own.estimate, "perplexity of the answers' tokens", others)
    for metric in comparison.metrics:
        is_first = metric.sampling == comparison.settings.sweep[0]
        if metric.contender == comparison.adapter and is_first and metric.name not in _NOT_RESULTS:
            others = {
                name: one.estimate.value
                for name in comparison.against
                if (one := comparison.metric(name, metric.name))
            }
            name = f"{metric.name.replace('_', ' ')}, {metric.sampling}, n = {metric.count}"
            yield _figure(comparison, -1, metric.name, metric.estimate, name, others)


def _figure(
    comparison: Comparison, file: int, kind: str, estimate: Estimate, name: str, others: dict[str, float]
) -> Evaluation:
    beside = "".join(f"; {other} {others[other]:.4g}" for other in comparison.against if other in others)
    return Evaluation(
        task_type="text-generation",
        dataset_name=comparison.files[file].name,
        dataset_type=f"sha256:{comparison.files[file].sha256}",
        dataset_split=_SPLIT,
        metric_type=kind,
        metric_name=f"{name}; 95 % interval {estimate.low:.4g} to {estimate.high:.4g}{beside}",
        metric_value=round(estimate.value, 4) if math.isfinite(estimate.value) else str(estimate.value),
    )
