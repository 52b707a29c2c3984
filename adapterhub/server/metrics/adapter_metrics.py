"""Figures by adapter, under labels that are bounded in number; and the adapters as inference gateways read them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from adapterhub.engine.stats import AdapterStats, EngineStats
from adapterhub.server.metrics.adapter_labels import BASE, AdapterLabels
from adapterhub.server.metrics.adapter_totals import AdapterTotals

_GAUGES: tuple[tuple[str, str, Callable[[AdapterStats], int]], ...] = (
    ("requests_running", "Sequences in the running batch.", lambda stats: stats.running),
    ("requests_waiting", "Sequences that wait to start.", lambda stats: stats.waiting),
    ("in_slots", "Versions in LoRA slots.", lambda stats: stats.in_slot),
    ("in_host_memory", "Versions in host memory.", lambda stats: stats.in_host_memory),
    ("pinned", "Versions that are not evicted.", lambda stats: stats.pinned),
)
_COUNTERS: tuple[tuple[str, str, Callable[[AdapterStats], int]], ...] = (
    (
        "prompt_tokens",
        "Tokens of prompts whose first token was generated.",
        lambda stats: stats.prompt_tokens,
    ),
    ("generation_tokens", "Tokens generated.", lambda stats: stats.tokens),
)
_REASONS = ("stop", "length", "abort", "error")
_MAX_NAMES = 256
"""How many waiting adapters a gateway is told of."""


class AdapterMetrics:
    """Makes the families by adapter. Any thread may call it.

    Args:
        labels: Which label an adapter has.
    """

    def __init__(self, labels: AdapterLabels) -> None:
        self._labels = labels
        self._totals = AdapterTotals(labels)
        self._lock = threading.Lock()

    def families(self, stats: EngineStats) -> Iterator[Metric]:
        """The families of a snapshot: each label has its series, whether anything was counted or not."""
        with self._lock:
            labels = self._labels.refresh()
            totals = dict(self._totals.update(_counts(stats.adapters), labels))
        yield from self._gauges(stats.adapters, labels)
        yield from _counters(totals, labels)
        if stats.max_loras:
            yield self._gateway_info(stats)

    def _gauges(self, adapters: Mapping[str, AdapterStats], labels: tuple[str, ...]) -> Iterator[Metric]:
        by_label = [(self._labels.label(reference), one) for reference, one in adapters.items()]
        for name, meaning, value_of in _GAUGES:
            sums: Counter[str] = Counter()
            for label, one in by_label:
                if label is not None:
                    sums[label] += value_of(one)
            family = GaugeMetricFamily(f"adapterhub_adapter_{name}", meaning, labels=("adapter",))
            for label in labels:
                family.add_metric((label,), sums[label])
            yield family

    def _gateway_info(self, stats: EngineStats) -> Metric:
        """One series, of which a gateway takes the newest; its contract has names in labels, so it changes often."""
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "When this was so, in seconds since 1970: adapters in slots, and those that wait for one.",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        adapters = {name: one for name, one in stats.adapters.items() if name != BASE}
        resident = [name for name, one in adapters.items() if one.in_slot]
        waiting = [name for name, one in adapters.items() if one.waiting and not one.in_slot]
        names = (self._joined(resident), self._joined(waiting[:_MAX_NAMES]))
        family.add_metric((str(stats.max_loras), *names), time.time())
        return family

    def _joined(self, references: list[str]) -> str:
        return ",".join(sorted(map(self._labels.client_name, references)))


def _counts(adapters: Mapping[str, AdapterStats]) -> dict[tuple[str, Hashable], int]:
    counts: dict[tuple[str, Hashable], int] = {}
    for reference, one in adapters.items():
        counts |= {(reference, name): value_of(one) for name, _, value_of in _COUNTERS}
        counts |= {(reference, (reason,)): count for reason, count in one.finished.items()}
    return counts


def _counters(totals: Mapping[tuple[str, Hashable], int], labels: tuple[str, ...]) -> Iterator[Metric]:
    for name, meaning, _ in _COUNTERS:
        family = CounterMetricFamily(f"adapterhub_adapter_{name}", meaning, labels=("adapter",))
        for label in labels:
            family.add_metric((label,), totals.get((label, name), 0))
        yield family
    ended = CounterMetricFamily(
        "adapterhub_adapter_requests", "Sequences that have ended.", labels=("adapter", "finished_reason")
    )
    for label in labels:
        for reason in _REASONS:
            ended.add_metric((label, reason), totals.get((label, (reason,)), 0))
    yield ended
