"""All metrics of one server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics

from adapterhub.server.metrics.adapter_labels import AdapterLabels
from adapterhub.server.metrics.adapter_metrics import AdapterMetrics
from adapterhub.server.metrics.engine_metrics import engine_families
from adapterhub.server.metrics.http import HttpMetrics
from adapterhub.server.metrics.replica_metrics import replica_families
from adapterhub.server.metrics.shadow_metrics import Shadows, shadow_families
from adapterhub.server.metrics.spans import Spans
from adapterhub.server.replicas import replicas_of

if TYPE_CHECKING:
    from adapterhub.hub import AdapterHub


class ServerMetrics:
    """The metrics and spans of one server.

    Args:
        hub: What answers.
        base_model: The id of its base, as clients name it.
        max_adapters: How many adapters have series of their own; the others are counted together, as `other`.
        shadows: What shadow traffic has counted.

    Attributes:
        http: What counts HTTP requests.
        spans: What makes spans; None if they are off.
    """

    def __init__(
        self, hub: AdapterHub, base_model: str, *, max_adapters: int, shadows: Shadows | None = None
    ) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        labels = AdapterLabels(hub.registry, max_adapters)
        self._registry.register(_HubCollector(hub, base_model, labels, {} if shadows is None else shadows))
        self.http = HttpMetrics(self._registry)
        self.spans = Spans.from_environment()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics, for a scraper.

        Args:
            accept: The `Accept` header, which chooses between Prometheus' text format and OpenMetrics.

        Returns:
            The text and its content type.
        """
        if "application/openmetrics-text" not in accept:
            return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4
        # Its other ways of escaping turn the colon of vLLM's names into an underscore, in samples alone.
        text = openmetrics.generate_latest(self._registry, escaping=openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST

    def close(self) -> None:
        """Sends the spans that are left; blocks until then."""
        if self.spans:
            self.spans.close()


class _HubCollector:
    """Reads the hub at each scrape, once, so that what a scrape has agrees with itself."""

    def __init__(self, hub: AdapterHub, base_model: str, labels: AdapterLabels, shadows: Shadows) -> None:
        self._hub = hub
        self._base_model = base_model
        self._labels = labels
        self._adapters = AdapterMetrics(labels)
        self._shadows = shadows

    def collect(self) -> Iterator[Metric]:
        stats = self._hub.stats()
        yield from engine_families(stats, self._base_model)
        yield from self._adapters.families(stats)
        yield from shadow_families(self._shadows, self._labels)
        if replicas := replicas_of(self._hub):
            yield from replica_families(replicas)
