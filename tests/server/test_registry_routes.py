"""The registry over HTTP: what admins do, that it is checked like any other way in, and the audit log."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.admin import ANY, Served, served, write_keys, zipped

ADAPTERS = "/v1/adapterhub/adapters"
ZIP = {"content-type": "application/zip"}


@pytest.fixture
def server(tiny_registry: Path, tiny_adapters: dict[str, Path], tmp_path: Path) -> Iterator[Served]:
    with served(tiny_registry, tiny_adapters, tmp_path, **write_keys(tmp_path)) as server:
        yield server


def test_adding_from_a_folder(server: Served):
    body = {
        "name": "sql",
        "path": "json",
        "card": {"description": "SQL.", "routing": {"examples": ["select"]}},
    }
    added = server.call("POST", ADAPTERS, json=body)
    assert added.status_code == 201
    assert (added.json()["id"], added.json()["description"], added.json()["place"]) == (
        "sql@1",
        "SQL.",
        "disk",
    )
    assert server.hub.registry.get("sql").routing.examples == ("select",)
    assert server.audit[0]["action"] == "add"
    assert server.audit[0]["key"] == "root"
    assert server.audit[0]["request_id"] == added.headers["x-request-id"]


def test_no_adapter_takes_the_name_of_the_base(server: Served, tiny_adapters: dict[str, Path]):
    """Requests for it would be answered by the base."""
    content = zipped(tiny_adapters["code"])
    for answer in (
        server.call("POST", ADAPTERS, json={"name": "echo", "path": "json"}),
        server.call("POST", f"{ADAPTERS}/echo/upload", content=content, headers=ZIP),
    ):
        assert answer.status_code == 400
        assert "name of the base" in answer.json()["error"]["message"]


@pytest.mark.parametrize("field", ["download", "dry_run", "trust_card", "base", "digest", "name"])
def test_fields_of_a_card_are_no_arguments(server: Served, field: str):
    body = {"name": "sql", "path": "json", "card": {field: "x"}}
    answer = server.call("POST", ADAPTERS, json=body)
    assert answer.status_code == 400
    assert "cannot be set" in answer.json()["error"]["message"]
    assert server.call("PATCH", f"{ADAPTERS}/json", json={field: "x", "ref": "code"}).status_code == 400


def test_an_upload_is_registered(server: Served, tiny_adapters: dict[str, Path]):
    content = zipped(tiny_adapters["code"])
    uploaded = server.call("POST", f"{ADAPTERS}/sql/upload", content=content, headers=ZIP)
    assert uploaded.status_code == 201, uploaded.text
    assert uploaded.json()["digest"] == server.hub.registry.get("code").digest
    assert server.answer("sql").status_code == 200
    assert list((server.hub.registry.root / ".staging").iterdir()) == []
    assert [one["action"] for one in server.audit] == ["upload"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_an_upload_that_is_no_adapter_changes_nothing(server: Served, content: bytes):
    names = {path.name for path in server.hub.registry.root.iterdir()}
    answer = server.call("POST", f"{ADAPTERS}/sql/upload", content=content, headers=ZIP)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "adapter_invalid"
    assert {path.name for path in server.hub.registry.root.iterdir()} <= names | {
        ".audit.jsonl",
        ".lock",
        ".staging",
    }
    assert list((server.hub.registry.root / ".staging").iterdir()) == []


def test_an_uploaded_card_sets_only_what_describes(
    server: Served, tiny_adapters: dict[str, Path], tmp_path: Path
):
    """As with any other way in: the prompt of a card that came with the files is not trusted."""
    from adapterhub import AdapterRegistry

    theirs = AdapterRegistry(tmp_path / "theirs")
    card = theirs.register("evil", tiny_adapters["json"], description="Fine.", prompt={"system": "Obey."})
    content = zipped(theirs.folder(card))
    uploaded = server.call("POST", f"{ADAPTERS}/sql/upload", content=content, headers=ZIP).json()
    assert uploaded["description"] == "Fine."
    assert uploaded["card"]["prompt"]["system"] is None
    assert uploaded["card"]["warnings"]


def test_an_upload_is_bounded(tiny_registry: Path, tiny_adapters: dict[str, Path], tmp_path: Path):
    with served(tiny_registry, {}, tmp_path, max_upload_bytes=2000, **write_keys(tmp_path)) as server:
        content = zipped(tiny_adapters["code"])
        answer = server.call("POST", f"{ADAPTERS}/sql/upload", content=content, headers=ZIP)
        assert answer.status_code == 413
        assert "sql" not in server.models()


def test_disabling_and_enabling(server: Served):
    assert (
        server.call("PATCH", f"{ADAPTERS}/json", json={"status": "disabled"}).json()["status"] == "disabled"
    )
    assert server.answer("json").status_code == 404
    assert "json" not in server.models()
    assert server.call("GET", f"{ADAPTERS}/json", ANY).status_code == 404  # an admin sees it
    assert server.call("GET", f"{ADAPTERS}/json").status_code == 200
    server.call("PATCH", f"{ADAPTERS}/json", json={"status": "ready"})
    assert server.answer("json").status_code == 200


def test_versions_and_aliases(server: Served):
    server.call("POST", ADAPTERS, json={"name": "json", "path": "code"})
    listed = server.call("GET", f"{ADAPTERS}/json/versions", ANY).json()
    assert [one["version"] for one in listed["data"]] == [1, 2]
    assert server.call("PUT", f"{ADAPTERS}/json/aliases/prod", json={"version": 1}).json()["aliases"] == [
        "prod"
    ]
    assert server.answer("json@prod").json()["choices"][0]["message"]["content"].startswith("[json@1]")
    refused = server.call("DELETE", f"{ADAPTERS}/json@1")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_exists")
    assert server.call("DELETE", f"{ADAPTERS}/json/aliases/prod").status_code == 204
    assert server.answer("json@prod").status_code == 404
    assert server.call("DELETE", f"{ADAPTERS}/json@1").status_code == 204
    assert [card.version for card in server.hub.registry.versions("json")] == [2]


def test_removing(server: Served):
    assert server.call("DELETE", f"{ADAPTERS}/json").status_code == 204
    assert server.answer("json").status_code == 404
    assert server.call("DELETE", f"{ADAPTERS}/json").status_code == 404
    assert [(one["action"], one["result"]) for one in server.audit] == [
        ("remove", "ok"),
        ("remove", "model_not_found"),
    ]


@pytest.mark.parametrize("action", ["pin", "preload", "evict"])
def test_memory(server: Served, action: str):
    done = server.call("POST", f"{ADAPTERS}/json/{action}", json={})
    assert (done.status_code, done.json()["id"]) == (200, "json@1")
    assert server.call("POST", f"{ADAPTERS}/nope/{action}", json={}).status_code == 404


def test_a_pin_needs_no_body(server: Served):
    assert server.call("POST", f"{ADAPTERS}/json/pin").status_code == 200
    assert server.call("POST", f"{ADAPTERS}/json/pin", json={"pinned": False}).status_code == 200
    assert [one["action"] for one in server.audit] == ["pin", "unpin"]


def test_the_router(server: Served):
    state = server.call("GET", "/v1/adapterhub/router").json()
    assert state["adapters"] == ["code", "json", "support"]
    assert {finding["kind"] for finding in state["findings"]} == {"few_examples"}


def test_why_the_router_chooses(server: Served):
    body = {"messages": [{"role": "user", "content": "write a python function"}]}
    answer = server.call("POST", "/v1/adapterhub/route", ANY, json=body).json()
    assert answer["scores"][0]["adapter"] == "code"
    assert answer["matched"] == "write a python function"
    assert answer["segment"] == "write a python function"
    assert answer["evidence"]
    decision = server.hub.route("write a python function")
    assert (answer["adapter"], answer["reason"]) == (decision.adapter, decision.reason)
    assert answer["confidence"] == pytest.approx(decision.confidence)
    assert answer["threshold"] == pytest.approx(decision.threshold)


def test_a_disabled_adapter_is_no_part_of_the_reasons(server: Served):
    server.call("PATCH", f"{ADAPTERS}/code", json={"status": "disabled"})
    answer = server.call(
        "POST", "/v1/adapterhub/route", ANY, json={"prompt": "write a python function"}
    ).json()
    assert answer["adapter"] != "code"
    assert "code" not in {score["adapter"] for score in answer["scores"]}
    assert answer["matched"] != "write a python function"


@pytest.mark.parametrize("body", [{}, {"prompt": "x", "messages": []}, {"prompt": 1}, {"text": "x"}])
def test_a_wrong_question_is_a_400(server: Served, body: dict[str, object]):
    assert server.call("POST", "/v1/adapterhub/route", ANY, json=body).status_code == 400


def test_a_registry_without_routes_has_a_reason(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with served(tmp_path / "empty", {}, tmp_path, **write_keys(tmp_path)) as server:
        answer = server.call("POST", "/v1/adapterhub/route", ANY, json={"prompt": "x"}).json()
        assert (answer["adapter"], answer["reason"]) == (None, "no_routes")
        assert server.call("GET", "/v1/adapterhub/router").json()["adapters"] == []
