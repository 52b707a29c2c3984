"""Figures of a fleet's servers, by their place in `/v1/fleet`: readers of metrics need no admin's key, and URLs do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from adapterhub.vllm.replica import ReplicaState

_GAUGES: tuple[tuple[str, str, Callable[[ReplicaState], int]], ...] = (
    ("ready", "Whether it takes requests.", lambda state: state.ready),
    ("draining", "Whether it gets no new requests.", lambda state: state.draining),
    ("requests_in_flight", "Requests that it answers now.", lambda state: state.in_flight),
    ("adapters", "Adapters that it has loaded.", lambda state: len(state.adapters)),
)
_COUNTERS: tuple[tuple[str, str, Callable[[ReplicaState], int]], ...] = (
    ("adapter_loads", "Adapters that it was told to load.", lambda state: state.loads),
    ("failures", "Times that it was found unavailable.", lambda state: state.failures),
)


def replica_families(replicas: Sequence[ReplicaState]) -> Iterator[Metric]:
    """The families of a snapshot.

    Args:
        replicas: The servers.
    """
    for kind, figures in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
        for name, meaning, value_of in figures:
            family = kind(f"adapterhub_replica_{name}", meaning, labels=("replica",))
            for number, state in enumerate(replicas):
                family.add_metric((str(number),), value_of(state))
            yield family
