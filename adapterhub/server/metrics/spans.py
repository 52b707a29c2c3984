"""OpenTelemetry spans: one for each inference request, as the GenAI semantic conventions v0.1.0 name it.

The names are constants of this module: the conventions are in development, and the Python package that had them calls
them deprecated. The SDK and its OTLP exporter are the extra `telemetry`; what they do is set by the `OTEL_*` variables.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from adapterhub.requests.generation import Generation

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_log = logging.getLogger(__name__)

PROVIDER = "adapterhub"
OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
}
"""The operation of each inference route; requests to other routes have no span."""

# Attribute -> the field of a request's body, and its type in the conventions.
_REQUEST_FIELDS: Mapping[str, tuple[str, type]] = {
    "gen_ai.request.model": ("model", str),
    "gen_ai.request.temperature": ("temperature", float),
    "gen_ai.request.top_p": ("top_p", float),
    "gen_ai.request.top_k": ("top_k", int),
    "gen_ai.request.seed": ("seed", int),
    "gen_ai.request.choice.count": ("n", int),
    "gen_ai.request.frequency_penalty": ("frequency_penalty", float),
    "gen_ai.request.presence_penalty": ("presence_penalty", float),
    "gen_ai.request.stream": ("stream", bool),
}
_Value = str | int | float | Sequence[str]
_MAX_TOKENS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_TEXTS_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


class RequestSpan:
    """The span of one request.

    Args:
        span: Of the SDK.
        operation: `"chat"` or `"text_completion"`.
        texts: Whether prompts and answers are recorded.
    """

    def __init__(self, span: Span, operation: str, *, texts: bool) -> None:
        self._span = span
        self._operation = operation
        self._texts = texts

    def asked(self, body: Mapping[str, Any]) -> None:
        """Records what was asked for: the fields of the body that were sent."""
        self._span.update_name(f"{self._operation} {body.get('model', '')}".strip())
        self._span.set_attributes(request_attributes(body))
        if self._texts:
            prompt = to_jsonable_python(
                body.get("messages", body.get("prompt", body.get("input"))), fallback=str
            )
            self._span.set_attribute(
                "gen_ai.input.messages", _json([_message(one) for one in _turns(prompt)])
            )

    def answered(self, answer_id: str, model: str, generation: Generation) -> None:
        """Records the answer.

        Args:
            answer_id: Its id in the protocol.
            model: Who answered, as the protocol names it.
            generation: The answer.
        """
        self._span.set_attributes(answer_attributes(answer_id, model, generation))
        if self._texts:
            answers = [
                {**_message({"role": "assistant", "content": one.text}), "finish_reason": one.finish_reason}
                for one in generation.completions
            ]
            self._span.set_attribute("gen_ai.output.messages", _json(answers))

    @property
    def headers(self) -> dict[str, str]:
        """The headers that make requests to other servers a part of the trace."""
        from opentelemetry.propagate import inject
        from opentelemetry.trace import set_span_in_context

        headers: dict[str, str] = {}
        inject(headers, set_span_in_context(self._span))
        return headers

    def end(self, status: int, error: str | None = None) -> None:
        """Ends the span.

        Args:
            status: Of HTTP.
            error: The code of the error, if the request failed; if not given, the status where it is one.
        """
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("http.response.status_code", status)
        error = error or (str(status) if status >= 400 else None)
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def span_of(scope: Mapping[str, Any]) -> RequestSpan | None:
    """The span of the request that an ASGI scope is of, if it has one."""
    span: RequestSpan | None = scope.get("state", {}).get("span")
    return span


class Spans:
    """Starts the spans of requests.

    Args:
        provider: What makes and exports spans.
        texts: Whether prompts and answers are recorded in them.
    """

    def __init__(self, provider: TracerProvider, *, texts: bool = False) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("adapterhub.server")
        self._texts = texts

    @classmethod
    def from_environment(cls) -> Spans | None:
        """Spans sent to the endpoint of the `OTEL_*` variables; None where they name none, or spans are off there.

        `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true` records texts.
        """
        if not _is_asked_for():
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            _log.warning("There are no spans: `pip install 'adapterhub[telemetry]'` first.")
            return None
        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or "adapterhub"})
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider, texts=_is_true(_TEXTS_VARIABLE))

    def start(self, route: str, headers: Mapping[str, str]) -> RequestSpan | None:
        """Starts the span of a request, as a part of the trace that its `traceparent` header names.

        Args:
            route: The path of the request.
            headers: Its headers, names in lower case.

        Returns:
            The span; None where the route has none.
        """
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        operation = OPERATIONS.get(route)
        if operation is None:
            return None
        attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "http.request.method": "POST",
            "http.route": route,
        }
        span = self._tracer.start_span(
            operation, extract(headers), kind=SpanKind.SERVER, attributes=attributes
        )
        return RequestSpan(span, operation, texts=self._texts)

    def close(self) -> None:
        """Sends what has not been sent, and stops; blocks until then."""
        self._provider.shutdown()


def request_attributes(body: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that a request's body gives: those of its fields that were sent, with a value of their type."""
    found = {
        attribute: kind(body[field])
        for attribute, (field, kind) in _REQUEST_FIELDS.items()
        if isinstance(body.get(field), kind | int)
    }
    max_tokens = next((body[field] for field in _MAX_TOKENS if body.get(field) is not None), None)
    if max_tokens is not None:
        found["gen_ai.request.max_tokens"] = max_tokens
    stop = body.get("stop")
    if stop:
        found["gen_ai.request.stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
    return found


def answer_attributes(answer_id: str, model: str, generation: Generation) -> dict[str, _Value]:
    """The attributes that an answer gives."""
    found: dict[str, _Value] = {
        "gen_ai.response.id": answer_id,
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": [one.finish_reason for one in generation.completions],
        "gen_ai.usage.input_tokens": generation.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": generation.usage.completion_tokens,
        "adapterhub.adapter.name": generation.adapter or "base",
    }
    if generation.usage.cached_tokens:
        found["gen_ai.usage.cache_read.input_tokens"] = generation.usage.cached_tokens
    if generation.version is not None:
        found["adapterhub.adapter.version"] = generation.version
    if generation.route is not None:
        found["adapterhub.route.reason"] = generation.route.reason
        found["adapterhub.route.confidence"] = generation.route.confidence
    return found


def _turns(prompt: Any) -> Sequence[Any]:
    """A prompt as messages: a text is one of the user."""
    return prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]


def _message(message: Any) -> dict[str, Any]:
    """A message as the conventions write it; what is no text, such as token ids, as JSON."""
    turn: Mapping[str, Any] = message if isinstance(message, Mapping) else {"content": message}
    content = turn.get("content")
    text = content if isinstance(content, str) else _json(content)
    return {"role": turn.get("role", "user"), "parts": [{"type": "text", "content": text}]}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is_asked_for() -> bool:
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if _is_true("OTEL_SDK_DISABLED") or exporter == "none":
        return False
    if exporter not in ("", "otlp"):
        _log.warning(
            "OTEL_TRACES_EXPORTER=%s is not known here; spans go out by OTLP or not at all.", exporter
        )
        return False
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return exporter == "otlp" or any(os.environ.get(name) for name in endpoints)


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() == "true"
