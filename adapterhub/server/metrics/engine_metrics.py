"""The engine's figures: under vLLM's names, which boards and gateways read, and under our own where it has none.

All of a scrape come from one snapshot, `hub.stats()`, so they agree with each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

if TYPE_CHECKING:
    from adapterhub.engine.stats import EngineStats
    from adapterhub.hub import AdapterHub


class _Figure(NamedTuple):
    name: str
    field: str
    """Of `EngineStats`."""
    meaning: str


_GAUGES = (
    _Figure("vllm:num_requests_running", "running", "Sequences in the running batch."),
    _Figure("vllm:num_requests_waiting", "waiting", "Sequences that wait to start."),
    _Figure("adapterhub_lora_slots", "max_loras", "LoRA slots."),
    _Figure("adapterhub_lora_slots_used", "resident", "LoRA slots that hold an adapter."),
    _Figure("adapterhub_lora_slots_bytes", "adapter_bytes", "Memory of the LoRA slots."),
    _Figure("adapterhub_host_adapters", "host_adapters", "Adapters in host memory."),
    _Figure("adapterhub_host_adapters_bytes", "host_bytes", "Memory of the adapters in host memory."),
    _Figure("adapterhub_kv_cache_bytes", "kv_bytes", "Memory of the allocated KV slots."),
    _Figure("adapterhub_prefix_cache_tokens", "prefix_cache_tokens", "Tokens in the prefix cache."),
    _Figure("adapterhub_weights_bytes", "weight_bytes", "Memory of the base's weights."),
)
_COUNTERS = (
    _Figure("vllm:generation_tokens", "tokens", "Tokens generated."),
    _Figure("vllm:prefix_cache_hits", "prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache."),
    _Figure("adapterhub_engine_steps", "steps", "Steps of the engine."),
    _Figure("adapterhub_lora_slot_hits", "hits", "Sequences that found their adapter in a slot."),
    _Figure("adapterhub_lora_slot_loads", "loads", "Adapters put into a slot."),
    _Figure("adapterhub_lora_slot_evictions", "evictions", "Adapters evicted from a slot."),
)
_LABELS = ("model_name", "engine")


class EngineCollector:
    """Reads the engine's statistics at each scrape.

    Args:
        hub: Whose engine.
        model_name: The base, as clients name it.
    """

    def __init__(self, hub: AdapterHub, model_name: str) -> None:
        self._hub = hub
        self._values = (model_name, "0")

    def collect(self) -> Iterator[Metric]:
        """All metrics; see prometheus_client's `Collector`."""
        stats = self._hub.stats()
        for figure in _GAUGES:
            yield self._family(GaugeMetricFamily, figure, stats)
        for figure in _COUNTERS:
            yield self._family(CounterMetricFamily, figure, stats)

    def _family(
        self, kind: type[GaugeMetricFamily | CounterMetricFamily], figure: _Figure, stats: EngineStats
    ) -> Metric:
        family = kind(figure.name, figure.meaning, labels=_LABELS)
        family.add_metric(self._values, getattr(stats, figure.field))
        return family
