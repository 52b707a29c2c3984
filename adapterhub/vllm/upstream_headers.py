"""Headers that a request takes with it to the vLLM server, so that traces and log lines of both can be joined."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

upstream_headers: ContextVar[Mapping[str, str]] = ContextVar("upstream_headers", default={})  # noqa: B039
"""Headers of completions that are asked for in this context: `x-request-id`, `traceparent`. Never replaced in place."""
