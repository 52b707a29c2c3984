"""Figures of shadow traffic, by adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric

from adapterhub.server.metrics.adapter_labels import AdapterLabels

if TYPE_CHECKING:
    from adapterhub.server.shadow_traffic import ShadowCounts

Shadows: TypeAlias = Mapping[tuple[str, str], "ShadowCounts"]
"""Alias and version -> what became of the copies."""
_OUTCOMES = ("same", "different", "failed", "dropped")


def shadow_families(shadows: Shadows, labels: AdapterLabels) -> Iterator[Metric]:
    """The families, with series for adapters that have had copies.

    Args:
        shadows: What was counted.
        labels: Which label an adapter has.
    """
    copies: Counter[tuple[str, str]] = Counter()
    seconds: Counter[str] = Counter()
    for (alias, _), counts in list(shadows.items()):
        if (label := labels.label(alias)) is None:  # it has been removed
            continue
        seconds[label] += counts.seconds  # type: ignore[assignment]  # a Counter adds floats too
        for outcome in _OUTCOMES:
            copies[label, outcome] += getattr(counts, outcome)
    requests = CounterMetricFamily(
        "adapterhub_shadow_requests",
        "Copies of requests for shadows: their answer had the same text or another, failed, or they were dropped.",
        labels=("adapter", "outcome"),
    )
    for (label, outcome), count in sorted(copies.items()):
        requests.add_metric((label, outcome), count)
    yield requests
    times = CounterMetricFamily("adapterhub_shadow_seconds", "Time of shadows' answers.", labels=("adapter",))
    for label, total in sorted(seconds.items()):
        times.add_metric((label,), total)
    yield times
