"""Errors in OpenAI's form: every error of the tree, what HTTP itself refuses, and what must not be told."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine, errors
from adapterhub.server import create_app
from adapterhub.server.protocol.chat import ChatCompletionRequest
from adapterhub.server.protocol.completions import CompletionRequest
from adapterhub.server.protocol.fields import Body
from adapterhub.server.protocol.responses import ResponseRequest

PATH = "/v1/completions"
ASKED = {"model": "base", "prompt": "Hi"}


class FailingEngine(EchoEngine):
    """Raises what a test asks for."""

    error: BaseException | None = None

    async def agenerate(self, requests: object) -> object:
        """Raises."""
        assert self.error
        raise self.error


@pytest.fixture(scope="module")
def engine() -> FailingEngine:
    return FailingEngine()


@pytest.fixture(scope="module")
def app(hub: AdapterHub, engine: FailingEngine) -> Iterator[FastAPI]:
    with AdapterHub(engine, hub.registry) as failing:
        yield create_app(failing)


async def answer_to(error: BaseException, client: httpx.AsyncClient, engine: FailingEngine) -> httpx.Response:
    engine.error = error
    return await client.post(PATH, json=ASKED)


@pytest.mark.parametrize(
    ("kind", "status", "code", "type_"),
    [
        (errors.InvalidRequestError, 400, "invalid_value", "invalid_request_error"),
        (errors.RequestTooLongError, 400, "context_length_exceeded", "invalid_request_error"),
        (errors.AdapterNotFoundError, 404, "model_not_found", "invalid_request_error"),
        (errors.AdapterDisabledError, 404, "adapter_disabled", "invalid_request_error"),
        (errors.AdapterExistsError, 409, "adapter_exists", "invalid_request_error"),
        (errors.AdapterIncompatibleError, 422, "adapter_incompatible", "invalid_request_error"),
        (errors.AdapterInvalidError, 422, "adapter_invalid", "invalid_request_error"),
        (errors.CapacityError, 429, "rate_limit_exceeded", "rate_limit_error"),
        (errors.EngineClosedError, 503, "overloaded", "server_error"),
        (errors.RegistryLockedError, 503, "registry_locked", "server_error"),
        (errors.RegistryUnavailableError, 503, "registry_unavailable", "server_error"),
        (errors.DeadlineError, 504, "deadline_exceeded", "server_error"),
    ],
)
async def test_an_error_of_the_tree(
    client: httpx.AsyncClient,
    engine: FailingEngine,
    kind: type[errors.AdapterHubError],
    status: int,
    code: str,
    type_: str,
):
    answer = await answer_to(kind("What happened.", hint="What to do."), client, engine)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert error["message"] == "What happened. What to do."
    assert (error["code"], error["type"]) == (code, type_)
    assert ("retry-after" in answer.headers) == kind.retryable


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("the secret"),
        errors.GenerationError("the secret"),
        errors.ConfigError("the secret"),
        errors.RegistryError("the secret"),
        ExceptionGroup("the secret", [ValueError("the secret")]),
    ],
)
async def test_what_clients_did_not_cause_is_not_told(
    client: httpx.AsyncClient, engine: FailingEngine, error: Exception, caplog: pytest.LogCaptureFixture
):
    answer = await answer_to(error, client, engine)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    # What other libraries say may quote a prompt; their type and the traceback are logged.
    assert ("the secret" in caplog.text) == isinstance(error, errors.AdapterHubError)
    assert type(error).__name__ in caplog.text
    assert "in agenerate" in caplog.text


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("'/home/me/adapters/json' has no config.", "'json' has no config."),
        ("There is no /srv/registry/a/1.", "There is no 1."),
        (r"C:\Users\me\base is no base.", "base is no base."),
        ("GET /v1/models lists them.", "GET /v1/models lists them."),
        ("Use a number/letter.", "Use a number/letter."),
    ],
)
async def test_paths_of_the_machine_are_left_out(
    client: httpx.AsyncClient, engine: FailingEngine, message: str, told: str
):
    answer = await answer_to(errors.AdapterInvalidError(message), client, engine)
    assert answer.json()["error"]["message"] == told


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("http://10.0.0.1:8000 is full.", "[address] is full."),
        ("No server: http://gpu-1:8000: http://gpu-1:8000/health.", "No server: [address]: [address]."),
        ("The server at http://[::1]:8000 does not load it.", "The server at [address] does not load it."),
        ("s3://bucket/adapters does not answer.", "[address] does not answer."),
    ],
)
async def test_addresses_behind_the_server_are_logged_and_left_out(
    client: httpx.AsyncClient,
    engine: FailingEngine,
    message: str,
    told: str,
    caplog: pytest.LogCaptureFixture,
):
    """Not the message, in which a server may repeat what the client sent."""
    answer = await answer_to(errors.RegistryUnavailableError(message), client, engine)
    assert answer.json()["error"]["message"] == told
    (logged,) = (record.getMessage() for record in caplog.records if "://" in record.getMessage())
    assert logged.startswith(f"Request {answer.headers['x-request-id']} failed (registry_unavailable): ")
    assert "is full" not in logged
    assert "does not" not in logged


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/nothing", 404, "not_found"),
        ("DELETE", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/embeddings", 501, "not_implemented"),
        ("POST", "/v1/audio/speech", 501, "not_implemented"),
        ("GET", "/v1/files/abc/content", 501, "not_implemented"),
    ],
)
async def test_what_http_refuses(client: httpx.AsyncClient, method: str, path: str, status: int, code: str):
    answer = await client.request(method, path, json={})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert error.keys() == {"message", "type", "param", "code"}


async def test_clients_do_not_repeat_what_is_not_built(client: httpx.AsyncClient):
    """OpenAI's send a 5xx again, unless this header says no."""
    assert (await client.post("/v1/embeddings", json={})).headers["x-should-retry"] == "false"


async def test_auto_is_no_model_where_the_router_has_nothing_to_choose_by(tmp_path: Path):
    with AdapterHub(EchoEngine(), AdapterRegistry(tmp_path)) as empty:
        transport = httpx.ASGITransport(create_app(empty))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            answer = await client.post(PATH, json={**ASKED, "model": "auto"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (404, "model", "model_not_found")


CHAT = {"model": "base", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        (PATH, {"prompt": [1, -1]}, "prompt.1", "greater than or equal to 0"),
        (PATH, {"prompt": [[1], ["a"]]}, "prompt.1.0", "integer"),
        (PATH, {"prompt": {}}, "prompt", "string"),
        (PATH, {"prompt": []}, "prompt", "at least 1"),
        (PATH, {"prompt": ["a"] * 2049}, "prompt", "at most 2048"),
        (PATH, {"structured_outputs": {"foo": 1}}, "structured_outputs", "no 'foo'"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{}]}]},
            "messages.0.content.0.type",
            "",
        ),
        ("/v1/chat/completions", {"logit_bias": {"a": 1}}, "logit_bias.a", "integer"),
        ("/v1/chat/completions", {"tool_choice": "maybe"}, "tool_choice", "required"),
        ("/v1/responses", {"input": [{"role": "user", "content": None}]}, "input.0.content", ""),
        (
            "/v1/responses",
            {"input": "a", "text": {"format": {"type": "json_schema"}}},
            "text.format.name",
            "",
        ),
        ("/v1/adapterhub/adapters/x/aliases/y", {"version": "no"}, "version", "integer"),
    ],
)
async def test_the_field_is_where_it_stands_in_the_body(
    client: httpx.AsyncClient, path: str, body: dict[str, object], param: str, said: str
):
    common = {PATH: ASKED, "/v1/chat/completions": CHAT, "/v1/responses": {"model": "base"}}.get(path, {})
    method = "PUT" if "aliases" in path else "POST"
    answer = await client.request(method, path, json={**common, **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert said in error["message"]
    assert error["message"].startswith(f"{param}: ")
    assert "Value error" not in error["message"]


THOUSAND = 1000


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (CompletionRequest, "prompt", [-1] * THOUSAND),
        (CompletionRequest, "prompt", [[-1] * THOUSAND] * 2),
        (CompletionRequest, "logit_bias", {str(at): "x" for at in range(2000)}),
        (CompletionRequest, "stop", [1] * THOUSAND),
        (CompletionRequest, "bad_words", [1] * THOUSAND),
        (CompletionRequest, "stop_token_ids", ["x"] * THOUSAND),
        (CompletionRequest, "guided_choice", [1] * THOUSAND),
        (CompletionRequest, "structured_outputs", {"choice": [1] * THOUSAND}),
        (CompletionRequest, "structured_outputs", dict.fromkeys(map(str, range(THOUSAND)), 1)),
        (ChatCompletionRequest, "messages", [1] * THOUSAND),
        (ChatCompletionRequest, "messages", [{"role": "user", "content": [1] * THOUSAND}]),
        (ChatCompletionRequest, "messages", [{"role": "assistant", "tool_calls": [1] * THOUSAND}]),
        (ChatCompletionRequest, "tools", [1] * THOUSAND),
        (ResponseRequest, "input", [1] * THOUSAND),
        (ResponseRequest, "input", [{"role": "user", "content": [1] * THOUSAND}]),
        (ResponseRequest, "tools", [1] * THOUSAND),
        (ResponseRequest, "include", [1] * THOUSAND),
        (ResponseRequest, "metadata", dict.fromkeys(map(str, range(THOUSAND)), 1)),
    ],
)
def test_a_body_full_of_faults_is_described_by_a_few(model: type[Body], field: str, value: object):
    """A million of them would block every thread for seconds, and take gigabytes."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"model": "base", field: value})
    assert sum(problem["loc"][0] == field for problem in caught.value.errors()) < 10


async def test_values_are_not_repeated(client: httpx.AsyncClient):
    answer = await client.post(PATH, json={**ASKED, "temperature": "secret-value"})
    assert answer.status_code == 400
    assert "secret-value" not in answer.text
