"""Every path is guarded, and a key sees its adapters alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.testclient import TestClient

from adapterhub.server.access.levels import Level, level_of
from tests.server.admin import ADMIN, ANY, HELLO, JSON_ONLY, Served, served, write_keys


@pytest.fixture(scope="module")
def server(
    tiny_registry: Path, tiny_adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("access")
    with served(tiny_registry, tiny_adapters, folder, **write_keys(folder)) as server:
        yield server


def routes(server: Served) -> list[tuple[str, str]]:
    """Every method and path of the application; a mounted one is its prefix."""
    return sorted(
        (method, one.path)
        for one in iter_route_contexts(server.client.app.routes)
        for method in one.methods or {"GET"}
    )


def test_every_path_but_probes_and_the_page_needs_a_key(server: Served):
    paths = routes(server)
    assert ("POST", "/v1/chat/completions") in paths
    for method, path in paths:
        if level_of(method, path) is Level.OPEN:
            assert path in ("/", "/health", "/ping", "/ready") or path.startswith("/page/")
            continue
        for key in (None, "wrong-key-0123456789"):
            answer = server.call(method, path.replace("{", "").replace("}", ""), key)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert answer.json()["error"]["code"] == "invalid_api_key"


# A path that is not here is an admin's: place it in access/levels.py and here.
FOR_ALL_KEYS = {
    ("GET", "/load"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/adapterhub/adapters"),
    ("GET", "/v1/adapterhub/adapters/{name}/versions"),
    ("GET", "/v1/adapterhub/adapters/{ref}"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model_id:path}"),
    ("GET", "/version"),
    ("POST", "/v1/adapterhub/route"),
    ("POST", "/detokenize"),
    ("POST", "/tokenize"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"),
}


def test_what_is_no_ones_inference_is_an_admins(server: Served):
    for method, path in routes(server):
        level = level_of(method, path)
        if method == "HEAD" or level is Level.OPEN:
            continue
        if level is Level.ADMIN:
            answer = server.call(method, path.replace("{", "").replace("}", ""), ANY)
            assert answer.status_code == 403, (method, path)
            assert answer.json()["error"]["code"] == "permission_denied"
    for method, path in FOR_ALL_KEYS:
        assert level_of(method, path) is Level.INFERENCE


def test_an_unknown_path_is_not_found_with_a_key_alone(server: Served):
    assert server.call("GET", "/v1/nothing", None).status_code == 401
    assert server.call("GET", "/v1/nothing", ANY).status_code == 404


def test_with_an_admins_key_alone_any_key_will_do_for_inference_and_no_other_for_the_rest(
    tiny_registry: Path, tmp_path: Path
):
    with served(tiny_registry, {}, tmp_path, admin_key_file=write_keys(tmp_path)["admin_key_file"]) as server:
        for key in (None, "none"):
            assert server.answer("json", key).status_code == 200
            refused = server.call("DELETE", "/v1/adapterhub/adapters/json", key)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert server.call("GET", "/v1/adapterhub/router").status_code == 200


def test_a_mounted_application_guards_the_same_paths(
    tiny_registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ADAPTERHUB_API_KEY", ANY)
    with served(tiny_registry, {}, tmp_path) as server:
        outer = FastAPI()
        outer.mount("/llm", server.client.app)
        client = TestClient(outer)
        key = {"authorization": f"Bearer {ANY}"}
        hello = {**HELLO, "model": "json"}
        assert client.post("/llm/v1/chat/completions", json=hello, headers=key).status_code == 200
        assert client.post("/llm/v1/chat/completions", json=hello).status_code == 401
        assert client.get("/llm/health").status_code == 200
        assert client.get("/llm/").status_code == 200
        assert client.get("/llm/v1/adapterhub/router", headers=key).status_code == 403


def test_azures_header_is_accepted(server: Served):
    assert server.call("GET", "/version", None, headers={"api-key": ANY}).status_code == 200
    assert server.call("GET", "/version", None, headers={"authorization": f"Basic {ANY}"}).status_code == 401
    assert server.call("GET", f"/version?api-key={ANY}", None).status_code == 401


def test_a_listed_adapter_alone_exists(server: Served):
    assert {"json", "code", "support"} <= set(server.models(ANY))
    shown = server.models(JSON_ONLY)
    assert "json" in shown
    assert not {"code", "support"} & set(shown)
    assert server.answer("json", JSON_ONLY).json()["choices"][0]["message"]["content"].startswith("[json@1]")


@pytest.mark.parametrize("model", ["code", "code@1", "code@latest", "json:0.5+code:0.5", "code:2"])
def test_another_adapter_is_answered_as_one_that_does_not_exist(server: Served, model: str):
    hidden = server.answer(model, JSON_ONLY)
    missing = server.answer(model.replace("code", "nope"), JSON_ONLY)
    assert (hidden.status_code, missing.status_code) == (404, 404)
    assert hidden.json()["error"]["code"] == "model_not_found"
    assert "support" not in hidden.text
    assert hidden.text.replace("code", "nope") == missing.text.replace("code", "nope")
    assert server.call("GET", f"/v1/models/{model}", JSON_ONLY).status_code == 404


def test_auto_chooses_among_the_listed_ones(server: Served):
    question = {
        **HELLO,
        "messages": [{"role": "user", "content": "write a python function"}],
        "model": "auto",
    }
    for key, may_be in ((ANY, {"code"}), (JSON_ONLY, {"json", "base", "echo"})):
        answer = server.call("POST", "/v1/chat/completions", key, json=question)
        assert answer.status_code == 200
        assert answer.json()["model"].partition("@")[0] in may_be


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/completions", {"prompt": "write a python function"}),
        ("/v1/responses", {"input": "write a python function"}),
    ],
)
def test_other_answers_too_are_of_listed_ones_alone(server: Served, path: str, field: dict[str, str]):
    for model, status in (("json", 200), ("code", 404), ("auto", 200)):
        answer = server.call("POST", path, JSON_ONLY, json={**field, "model": model})
        assert answer.status_code == status
        assert answer.headers.get("x-adapterhub-adapter") != "code"
    routed = server.call("POST", path, ANY, json={**field, "model": "auto"})
    assert routed.headers["x-adapterhub-adapter"] == "code"


@pytest.mark.parametrize("stream", [False, True])
def test_responses_too_are_given_by_listed_ones_alone(server: Served, stream: bool):
    body = {"input": "write a python function", "max_output_tokens": 8, "stream": stream}
    for model, status in (("json", 200), ("code", 404), ("auto", 200)):
        answer = server.call("POST", "/v1/responses", JSON_ONLY, json={**body, "model": model})
        assert answer.status_code == status
        assert answer.headers.get("x-adapterhub-adapter") != "code"
    routed = server.call("POST", "/v1/responses", ANY, json={**body, "model": "auto"})
    assert routed.headers["x-adapterhub-adapter"] == "code"


@pytest.mark.parametrize("path", ["code", "code@1", "code/versions", "nope", "nope/versions"])
def test_the_registry_hides_what_the_key_may_not_use(server: Served, path: str):
    answer = server.call("GET", f"/v1/adapterhub/adapters/{path}", JSON_ONLY)
    assert answer.status_code == 404
    assert "support" not in answer.text


def test_the_registry_shows_what_the_key_may_use(server: Served):
    listed = server.call("GET", "/v1/adapterhub/adapters", JSON_ONLY).json()["data"]
    assert [one["id"] for one in listed] == ["json@1"]
    shown = server.call("GET", "/v1/adapterhub/adapters/json", JSON_ONLY).json()
    assert (shown["id"], shown["rank"], shown["card"]) == ("json@1", 4, None)
    assert server.call("GET", "/v1/adapterhub/adapters/json", ADMIN).json()["card"]["routing"]["examples"]


def test_the_route_names_what_the_key_may_use(server: Served):
    body = {"prompt": "write a python function"}
    for key, names in ((ANY, {"json", "code", "support"}), (JSON_ONLY, {"json"})):
        answer = server.call("POST", "/v1/adapterhub/route", key, json=body).json()
        assert {score["adapter"] for score in answer["scores"]} == names
    assert answer["matched"] is None
    assert answer["evidence"] == []


def test_no_key_is_in_a_log(server: Served, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(0):
        server.answer("json", ANY)
        server.answer("json", "wrong-key-0123456789")
    assert ANY not in caplog.text
    assert "wrong-key" not in caplog.text


def test_the_limits_of_a_key_are_kept(tiny_registry: Path, tmp_path: Path):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([{"name": "slow", "key": ANY, "requests_per_minute": 2}]))
    path.chmod(0o600)
    with served(tiny_registry, {}, tmp_path, api_key_file=path) as server:
        assert [server.answer("json").status_code for _ in range(3)] == [200, 200, 429]
        refused = server.answer("json")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert server.call("GET", "/v1/models", ANY).status_code == 200  # reading costs nothing


def test_a_key_may_be_taken_away_while_the_server_runs(tiny_registry: Path, tmp_path: Path):
    files = write_keys(tmp_path)
    with served(tiny_registry, {}, tmp_path, **files) as server:
        assert server.answer("json").status_code == 200
        files["api_key_file"].write_text(json.dumps([{"name": "json-only", "key": JSON_ONLY}]))
        server.client.app.state.server.access.reload_if_changed()  # within a second
        assert server.answer("json").status_code == 401
        assert server.answer("code", JSON_ONLY).status_code == 200
