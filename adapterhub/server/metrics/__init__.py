"""What the server tells of itself: Prometheus metrics, and OpenTelemetry spans where they are asked for."""

from adapterhub.server.metrics.http import CLIENT_GONE as CLIENT_GONE
from adapterhub.server.metrics.server_metrics import ServerMetrics as ServerMetrics
from adapterhub.server.metrics.spans import RequestSpan as RequestSpan
from adapterhub.server.metrics.spans import Spans as Spans
from adapterhub.server.metrics.spans import span_of as span_of
