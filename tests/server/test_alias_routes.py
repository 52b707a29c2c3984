"""Canaries and shadows over HTTP: who may set them, what they change, and what clients are told."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.admin import ANY, HELLO, JSON_ONLY, Served, served, write_keys

ALIASES = "/v1/adapterhub/adapters/json/aliases"
USERS = [f"user-{number}" for number in range(60)]


@pytest.fixture
def server(tiny_registry: Path, tiny_adapters: dict[str, Path], tmp_path: Path) -> Iterator[Served]:
    """json@1 to json@3; 1 and 2 share `prod`."""
    with served(tiny_registry, tiny_adapters, tmp_path, **write_keys(tmp_path)) as server:
        for name in ("code", "support"):
            server.hub.registry.register("json", tiny_adapters[name])
        server.hub.registry.alias("json", "prod", {1: 50, 2: 50})
        yield server


def ask(server: Served, path: str = "chat/completions", *, stream: bool = False, **fields: Any) -> Any:
    headers = fields.pop("headers", {})
    prompt: dict[str, Any] = {"chat/completions": HELLO, "completions": {"prompt": "Hello"}}.get(
        path, {"input": "Hello"}
    )
    body = {**prompt, "model": "json@prod", "stream": stream, **fields}
    return server.call("POST", f"/v1/{path}", ANY, json=body, headers=headers)


def version(answer: Any) -> int:
    assert answer.status_code == 200, answer.text
    return int(answer.headers["x-adapterhub-version"])


def test_a_split_is_set_listed_and_audited(server: Served):
    answer = server.call("PUT", f"{ALIASES}/live", json={"weights": {"2": 90, "3": 10}})
    assert (answer.status_code, answer.json()["id"], answer.json()["aliases"]) == (200, "json@2", ["live"])
    listed = server.call("GET", ALIASES, ANY).json()["data"]
    assert listed[0] == {
        "id": "json@live",
        "object": "adapterhub.alias",
        "version": 2,
        "shares": {"2": 0.9, "3": 0.1},
        "shadow": None,
    }
    assert (server.audit[-1]["action"], server.audit[-1]["adapter"]) == ("alias", "json@live")


def test_a_shadow_is_set_and_removed(server: Served):
    answer = server.call("PUT", f"{ALIASES}/prod/shadow", json={"version": 3, "percent": 20})
    assert answer.json()["shadow"] == {"version": 3, "percent": 20}
    assert server.call("DELETE", f"{ALIASES}/prod/shadow").status_code == 204
    assert server.call("GET", ALIASES).json()["data"][0]["shadow"] is None
    assert [one["action"] for one in server.audit] == ["shadow", "remove shadow"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("live", {}, 400),
        ("live", {"version": 1, "weights": {"1": 1}}, 400),
        ("live", {"weights": {}}, 400),
        ("live", {"weights": {"1": 0}}, 400),
        ("live", {"weights": {"one": 1}}, 400),
        ("live", {"weights": {"1": 1, "9": 1}}, 404),
        ("prod/shadow", {"version": 1}, 400),
        ("prod/shadow", {"version": 9}, 404),
        ("prod/shadow", {"version": 3, "percent": 0}, 400),
        ("absent/shadow", {"version": 3}, 404),
    ],
)
def test_what_is_not_valid_changes_nothing(server: Served, path: str, body: dict[str, Any], status: int):
    before = server.call("GET", ALIASES).json()
    assert server.call("PUT", f"{ALIASES}/{path}", json=body).status_code == status
    assert server.call("GET", ALIASES).json() == before


def test_only_admins_change_them_and_only_who_may_use_the_adapter_reads_them(server: Served):
    for method, path in (("PUT", "prod"), ("PUT", "prod/shadow"), ("DELETE", "prod/shadow")):
        assert server.call(method, f"{ALIASES}/{path}", ANY, json={"version": 3}).status_code == 403
    assert server.call("GET", "/v1/adapterhub/shadows", ANY).status_code == 403
    assert server.call("GET", "/v1/adapterhub/shadows").status_code == 200
    assert server.call("GET", ALIASES, JSON_ONLY).status_code == 200
    assert server.call("GET", ALIASES.replace("json", "code"), JSON_ONLY).status_code == 404


def test_removing_a_version_with_a_share_is_refused(server: Served):
    refused = server.call("DELETE", "/v1/adapterhub/adapters/json@2")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_exists")


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", ["user", "safety_identifier", "x-session-id"])
def test_a_user_keeps_a_version_on_every_path(server: Served, path: str, stream: bool, field: str):
    def asked(user: str) -> int:
        given: dict[str, Any] = {field: user} if "-" not in field else {"headers": {field: user}}
        return version(ask(server, path, stream=stream, **given))

    expected = {user: int(server.hub._choose_version("json@prod", user)[-1]) for user in USERS[:8]}
    assert {user: asked(user) for user in expected} == expected
    assert set(expected.values()) == {1, 2}


def test_without_a_user_each_request_is_chosen_for_anew(server: Served):
    counts = Counter(version(ask(server)) for _ in range(60))
    assert counts.keys() == {1, 2}  # but once in 2**59 runs


def test_the_body_wins_over_the_header_and_the_newer_name_over_the_older(server: Served):
    by_user = {user: int(server.hub._choose_version("json@prod", user)[-1]) for user in USERS}
    one = next(user for user in USERS if by_user[user] == 1)
    two = next(user for user in USERS if by_user[user] == 2)
    assert version(ask(server, user=one, headers={"x-session-id": two})) == 1
    assert version(ask(server, user=one, safety_identifier=two)) == 2


def test_a_user_is_honoured_and_not_reported_as_ignored(server: Served):
    answer = ask(server, user="ann", metadata={})
    assert answer.headers["x-adapterhub-ignored"] == "metadata"
    assert ask(server, user={"id": 5}).status_code == 400


def test_the_version_with_a_user_stays_out_of_logs(server: Served, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    ask(server, user="secret-user-name")
    assert caplog.records
    assert "secret-user-name" not in caplog.text


def test_a_request_with_tools_is_answered_by_the_version_whose_format_it_has(server: Served):
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    for user in USERS[:6]:
        answer = ask(server, user=user, tools=[tool], tool_choice="none")
        assert f"json@{version(answer)}" == server.hub._choose_version("json@prod", user)


def test_a_model_tells_its_shares(server: Served):
    described = server.call("GET", "/v1/models/json@prod", ANY).json()
    assert described["root"] == "json@1"
    assert described["shares"] == {"json@1": 0.5, "json@2": 0.5}
    for other in ("json", "json@1", "json@1:0.5", "base", "auto"):
        assert server.call("GET", f"/v1/models/{other}", ANY).json()["shares"] is None
