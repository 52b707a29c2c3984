"""The engine's figures: under vLLM's names, which boards and gateways read, and under our own where it has none."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from adapterhub.engine.histogram import Histogram
from adapterhub.engine.stats import EngineStats


class _Figure(NamedTuple):
    name: str
    field: str
    """Of `EngineStats`."""
    meaning: str


_GAUGES = (
    _Figure("vllm:num_requests_running", "running", "Sequences in the running batch."),
    _Figure("vllm:num_requests_waiting", "waiting", "Sequences that wait to start."),
    _Figure("vllm:kv_cache_usage_perc", "kv_cache_usage", "Share of the memory for keys and values, 0 to 1."),
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
    _Figure("vllm:prompt_tokens", "prompt_tokens", "Tokens of prompts whose first token was generated."),
    _Figure("vllm:generation_tokens", "tokens", "Tokens generated."),
    _Figure(
        "vllm:prefix_cache_queries",
        "prefix_cache_query_tokens",
        "Prompt tokens looked for in the prefix cache.",
    ),
    _Figure("vllm:prefix_cache_hits", "prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache."),
    _Figure("adapterhub_requests_queued", "submitted", "Sequences that were queued."),
    _Figure("adapterhub_engine_steps", "steps", "Steps of the engine."),
    _Figure("adapterhub_lora_slot_hits", "hits", "Sequences that found their adapter in a slot."),
    _Figure("adapterhub_lora_slot_loads", "loads", "Adapters put into a slot."),
    _Figure("adapterhub_lora_slot_evictions", "evictions", "Adapters evicted from a slot."),
)
_BY_REASON = (
    (_Figure("vllm:request_success", "finished", "Sequences that have ended."), "finished_reason"),
    (
        _Figure("vllm:admission_rejections", "rejected", "Sequences refused before they were queued."),
        "reason",
    ),
)
_HISTOGRAMS = {
    "time_to_first_token_seconds": "From when a sequence was queued to its first token.",
    "inter_token_latency_seconds": "Between two tokens of a sequence.",
    "e2e_request_latency_seconds": "From when a sequence was queued to its last token.",
    "request_queue_time_seconds": "From when a sequence was queued to its first step.",
    "request_prefill_time_seconds": "From its first step to its first token.",
    "request_decode_time_seconds": "From its first token to its last.",
    "request_prompt_tokens": "Tokens of the prompt.",
    "request_generation_tokens": "Tokens generated.",
    "request_max_num_generation_tokens": "Tokens generated; of n completions, each is counted.",
}
"""Of vLLM -> what they are here; all are of sequences, and times only of those that ended by themselves."""
_SAME_AS = {"request_max_num_generation_tokens": "request_generation_tokens"}


def engine_families(stats: EngineStats, model_name: str) -> Iterator[Metric]:
    """The families of a snapshot.

    Args:
        stats: The snapshot.
        model_name: The base, as clients name it.
    """
    labels = {"model_name": model_name, "engine": "0"}
    names, values = tuple(labels), tuple(labels.values())
    for kind, figures in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
        for figure in figures:
            family = kind(figure.name, figure.meaning, labels=names)
            family.add_metric(values, getattr(stats, figure.field))
            yield family
    for figure, label in _BY_REASON:
        counter = CounterMetricFamily(figure.name, figure.meaning, labels=(*names, label))
        for reason, count in getattr(stats, figure.field).items():
            counter.add_metric((*values, reason), count)
        yield counter
    for name, meaning in _HISTOGRAMS.items():
        if histogram := stats.histograms.get(_SAME_AS.get(name, name)):
            distribution = HistogramMetricFamily(f"vllm:{name}", meaning, labels=names)
            distribution.add_metric(values, _buckets(histogram), histogram.sum)
            yield distribution
    if stats.kv_max_tokens:
        yield _cache_config(stats, labels)


def _cache_config(stats: EngineStats, labels: dict[str, str]) -> Metric:
    """How many prompts a gateway may take for cached: blocks of the prefix cache that fit the memory."""
    from adapterhub.engine.kv.prefix_cache import (
        BLOCK_SIZE,  # torch, which an engine with such a cache has loaded
    )

    family = InfoMetricFamily("vllm:cache_config", "The memory for keys and values, in blocks of tokens.")
    blocks = {"block_size": str(BLOCK_SIZE), "num_gpu_blocks": str(stats.kv_max_tokens // BLOCK_SIZE)}
    family.add_metric((), {**blocks, **labels})
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Upper bound -> how many values are at most that, as Prometheus counts."""
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))
