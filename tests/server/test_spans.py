"""Spans reach an OTLP collector over HTTP: one for each inference request, with the conventions' names."""

import asyncio
import json
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from starlette.types import Message, Receive, Scope, Send

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.errors import GenerationError
from adapterhub.server import ServerConfig, create_app
from adapterhub.server.generating.streaming import EventStream
from adapterhub.server.metrics import ServerMetrics, Spans
from adapterhub.server.middleware.observing import ObservingMiddleware

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
BODY = {
    "model": "json@1", "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 40, "temperature": 1,
    "top_k": 5, "seed": 3, "stream": False, "n": 1, "stop": "END", "user": "ann",
}  # fmt: skip


class Collector:
    """Takes spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: list[str] = []
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def _take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services += [
                one.value.string_value for one in resource.resource.attributes if one.key == "service.name"
            ]
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    yield collector
    collector.close()


def attributes(span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in span.attributes:
        kind = one.value.WhichOneof("value")
        value = getattr(one.value, kind)
        found[one.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


def recorded(collector: Collector, **ending: Any) -> Span:
    """The span of one request, as the collector gets it."""
    spans = Spans.from_environment()
    assert spans
    hub = AdapterHub(EchoEngine(), AdapterRegistry("adapters"))
    span = spans.start("/v1/chat/completions", {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert span
    span.asked(BODY)
    if not ending:
        span.answered("chatcmpl-1", "json@1", hub.generate("a secret", "json", raw=True))
    span.end(**ending or {"status": 200})
    spans.close()
    (span,) = collector.spans
    return span


def test_a_span_says_what_was_asked_and_who_answered(collector: Collector):
    span = recorded(collector)
    assert (span.name, span.kind) == ("chat json@1", Span.SPAN_KIND_SERVER)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert collector.services == ["adapterhub"]
    assert attributes(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "adapterhub",
        "gen_ai.request.model": "json@1",
        "gen_ai.request.max_tokens": 40,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.top_k": 5,
        "gen_ai.request.seed": 3,
        "gen_ai.request.stream": False,
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.stop_sequences": ["END"],
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "json@1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": len("a secret"),
        "gen_ai.usage.output_tokens": len("[json@1] a secret"),
        "adapterhub.adapter.name": "json",
        "adapterhub.adapter.version": 1,
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
    }


def test_texts_are_recorded_only_when_asked_for(collector: Collector, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    found = attributes(recorded(collector))
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "a secret"}]}
    ]
    assert json.loads(found["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "[json@1] a secret"}],
            "finish_reason": "stop",
        }
    ]


def test_a_failed_request_has_its_error(collector: Collector):
    span = recorded(collector, status=400, error="context_length_exceeded")
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "context_length_exceeded"
    assert attributes(span)["http.response.status_code"] == 400


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    ],
    ids=["nothing set", "disabled", "no exporter"],
)
def test_there_are_no_spans_unless_asked_for(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Spans.from_environment() is None


def test_without_the_extra_the_log_says_what_to_install(monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert Spans.from_environment() is None
    assert "adapterhub[telemetry]" in caplog.text


def test_requests_that_generate_nothing_have_no_span(collector: Collector):
    spans = Spans.from_environment()
    assert spans
    assert spans.start("/v1/models", {}) is None
    spans.close()
    assert collector.spans == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_server_makes_one_span_a_request_and_sends_it_before_it_ends(
    collector: Collector, hub: AdapterHub, stream: bool
):
    with TestClient(create_app(hub)) as server:
        answer = server.post(
            "/v1/chat/completions",
            json={
                "model": "auto",
                "messages": [{"role": "user", "content": "python code to reverse a list"}],
                "stream": stream,
            },
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
        )
        assert answer.status_code == 200
        server.get("/v1/models")
    (span,) = collector.spans
    found = attributes(span)
    assert span.trace_id.hex() == TRACE
    assert span.name == "chat auto"
    assert (found["adapterhub.adapter.name"], found["gen_ai.response.model"]) == ("code", "code")
    assert found["adapterhub.route.reason"] == answer.headers["x-adapterhub-route"]
    assert found["gen_ai.request.stream"] is stream or not stream
    assert found["gen_ai.response.id"].startswith("chatcmpl-")
    assert found["gen_ai.usage.output_tokens"] > 0
    assert not any("python code" in str(value) for value in found.values())


def test_the_servers_spans_have_texts_and_errors(
    collector: Collector, hub: AdapterHub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    with TestClient(create_app(hub)) as server:
        messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
        server.post("/v1/chat/completions", json={"model": "jsn", "messages": messages})
    (span,) = collector.spans
    found = attributes(span)
    assert (found["error.type"], found["http.response.status_code"]) == ("model_not_found", 404)
    assert "Hi" in found["gen_ai.input.messages"]
    assert "gen_ai.output.messages" not in found


async def test_an_error_after_the_status_is_the_spans_error(collector: Collector, hub: AdapterHub):
    """A stream that fails midway has the status 200, which says nothing."""

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        async def events() -> AsyncGenerator[bytes]:
            yield b"data: {}\n\n"
            raise GenerationError("The engine failed.")

        stream = await EventStream.begin(events(), {}, ServerConfig())
        await stream(scope, receive, send)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        pass

    metrics = ServerMetrics(hub, "echo", max_adapters=1)
    scope: Scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    await ObservingMiddleware(failing, metrics)(scope, receive, send)
    await asyncio.to_thread(metrics.close)
    (span,) = collector.spans
    found = attributes(span)
    assert (found["http.response.status_code"], found["error.type"]) == (200, "generation_failed")
    assert span.status.code == Status.STATUS_CODE_ERROR
