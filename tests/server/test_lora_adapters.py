"""vLLM's and SGLang's paths: their codes and texts, and the faults that ours has not got."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.base import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine import BatchingEngine
from adapterhub.server import ServerConfig, create_app
from tests.server.admin import Served, served, write_keys


@pytest.fixture
def server(tiny_registry: Path, tiny_adapters: dict[str, Path], tmp_path: Path) -> Iterator[Served]:
    with served(tiny_registry, tiny_adapters, tmp_path, **write_keys(tmp_path)) as server:
        yield server


def load(server: Served, name: str, path: str, **fields: object):
    return server.call("POST", "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path, **fields})


def unload(server: Served, name: str):
    return server.call("POST", "/v1/unload_lora_adapter", json={"lora_name": name})


def text(server: Served, model: str) -> str:
    answer = server.answer(model)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_a_script_of_vllm_runs_unchanged(server: Served):
    """List, load, list, ask, load again, unload, ask: as the examples of vLLM's documentation do."""
    assert "sql" not in server.models()
    path = str(server.folder / "json")
    loaded = load(server, "sql", path)
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    assert "sql" in server.models()
    assert text(server, "sql").startswith("[sql@1]")
    again = load(server, "sql", path)
    assert again.status_code == 400
    assert "has already been loaded" in again.json()["error"]["message"]
    unloaded = unload(server, "sql")
    assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
    assert "sql" not in server.models()
    assert server.answer("sql").status_code == 404
    assert unload(server, "sql").status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"lora_name": "", "lora_path": "json"}, 400),
        ({"lora_name": "sql", "lora_path": ""}, 400),
        ({"lora_name": "sql"}, 400),
        ({"lora_name": "echo", "lora_path": "json"}, 400),
        ({"lora_name": "json", "lora_path": "json"}, 400),
        ({"lora_name": "SQL/Lora", "lora_path": "json"}, 400),
        ({"lora_name": "../../sql", "lora_path": "json"}, 400),
        ({"lora_name": "sql", "lora_path": "nothing"}, 404),
        ({"lora_name": "sql", "lora_path": "/etc"}, 403),
        ({"lora_name": "sql", "lora_path": "json", "load_in_place": True}, 400),
    ],
)
def test_the_codes_of_vllm(server: Served, body: dict[str, str], status: int):
    answer = server.call("POST", "/v1/load_lora_adapter", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert str(server.folder.parent) not in answer.text
    assert "sql" not in server.models()


def test_a_body_without_its_content_type_is_told_which(server: Served):
    answer = server.call("POST", "/v1/load_lora_adapter", data={"lora_name": "sql", "lora_path": "json"})
    assert answer.status_code == 400
    assert "application/json" in answer.json()["error"]["message"]


def test_a_load_that_fails_changes_nothing(server: Served):
    (server.folder / "json" / "adapter_model.safetensors").write_bytes(b"damaged")
    answer = load(server, "sql", "json")
    assert answer.status_code == 422
    assert str(server.folder.parent) not in answer.text
    assert not (server.hub.registry.root / "sql").exists()
    assert [(one["action"], one["adapter"], one["result"]) for one in server.audit] == [
        ("load", "sql", "adapter_invalid")
    ]


def test_loading_in_place_makes_the_next_version(server: Served):
    assert load(server, "sql", "json").status_code == 200
    assert load(server, "sql", "code", load_inplace=True).status_code == 200
    assert text(server, "sql").startswith("[sql@2]")
    assert text(server, "sql@1").startswith("[sql@1]")  # whoever names the old version keeps it


def test_loading_and_unloading_again_stores_nothing_twice(server: Served):
    for _ in range(3):
        assert load(server, "sql", "json").status_code == 200
        assert unload(server, "sql").status_code == 200
    assert len(server.hub.registry.versions("sql")) == 1
    load(server, "sql", "code")
    assert text(server, "sql").startswith("[sql@2]")


def test_what_was_loaded_is_there_after_a_restart(server: Served, tmp_path: Path):
    load(server, "sql", "json")
    unload(server, "json")
    with served(server.hub.registry.root, {}, tmp_path / "again", **write_keys(tmp_path)) as restarted:
        assert "sql" in restarted.models()
        assert "json" not in restarted.models()


def test_a_replica_with_the_same_registry_serves_it_at_once(server: Served, tmp_path: Path):
    with (
        AdapterHub(EchoEngine(), AdapterRegistry(server.hub.registry.root)) as hub,
        TestClient(create_app(hub, ServerConfig(**write_keys(tmp_path)))) as client,
    ):
        replica = Served(client, hub, server.folder)
        assert replica.answer("sql").status_code == 404
        load(server, "sql", "json")
        assert text(replica, "sql").startswith("[sql@1]")
        load(server, "sql", "code", load_inplace=True)
        assert text(replica, "sql").startswith("[sql@2]")
        unload(server, "sql")
        assert "sql" not in replica.models()
        assert replica.answer("sql").status_code == 404


def test_sglangs_paths(server: Served):
    def post(action: str, **body: object):
        return server.call("POST", f"/{action}_lora_adapter", json=body)

    loaded = post("load", lora_name="sql", lora_path="json", pinned=True)
    assert loaded.status_code == 200
    assert loaded.json() == {
        "success": True,
        "error_message": None,
        "loaded_adapters": {"code": "code@1", "json": "json@1", "sql": "sql@1", "support": "support@1"},
    }
    twice = post("load", lora_name="sql", lora_path="json")
    assert twice.status_code == 400
    assert twice.json()["success"] is False
    assert "already been loaded" in twice.json()["error_message"]
    gone = post("unload", lora_name="sql")
    assert gone.json()["success"] is True
    assert "sql" not in gone.json()["loaded_adapters"]
    assert post("unload", lora_name="sql").status_code == 400


def test_an_adapter_that_sglang_lists_never_answers_as_the_base(server: Served):
    for model in ("json", "echo:json"):
        assert text(server, model).startswith("[json@1]")
    assert server.answer("nothing").status_code == 404


@pytest.fixture
def tiny_server(
    tiny_base: Path, tiny_registry: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> Iterator[Served]:
    base = load_base(str(tiny_base), quantization=None)
    engine = BatchingEngine(base, EngineLimits(max_loras=3, max_lora_rank=6), prove_base=False)
    with served(tiny_registry, tiny_adapters, tmp_path, engine, **write_keys(tmp_path)) as server:
        yield server


def test_unloading_frees_slot_and_memory(tiny_server: Served):
    before = tiny_server.hub.stats()
    assert load(tiny_server, "sql", "json").status_code == 200
    loaded = tiny_server.hub.stats()
    assert (loaded.resident, loaded.host_adapters) == (before.resident + 1, before.host_adapters + 1)
    pinned = tiny_server.call("POST", "/v1/adapterhub/adapters/sql/pin", json={"pinned": True}).json()
    assert (pinned["place"], pinned["pinned"]) == ("slot", True)
    assert unload(tiny_server, "sql").status_code == 200
    unloaded = tiny_server.hub.stats()
    assert (unloaded.resident, unloaded.host_adapters) == (before.resident, before.host_adapters)
    shown = tiny_server.call("GET", "/v1/adapterhub/adapters/sql").json()
    assert (shown["place"], shown["pinned"], shown["status"]) == ("disk", False, "disabled")


def test_a_rank_that_the_engine_does_not_serve_stores_nothing(tiny_server: Served):
    answer = load(tiny_server, "sql", "support")  # rank 8
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "adapter_incompatible"
    assert "rank" in answer.json()["error"]["message"]
    assert "sql" not in tiny_server.models()
    assert not tiny_server.hub.registry.root.joinpath("sql", "1").exists()


def test_a_running_answer_keeps_the_weights_that_it_started_with(tiny_server: Served):
    """Loading in place changes no answer that runs, and no prefix cache of the old version answers for the new."""
    hub = tiny_server.hub
    alone = {
        name: hub.generate("Hello", name, max_tokens=24, ignore_eos=True).text for name in ("json", "code")
    }
    load(tiny_server, "sql", "json")
    with hub.stream("Hello", "sql", max_tokens=24, ignore_eos=True) as stream:
        text = next(stream)
        assert load(tiny_server, "sql", "code", load_inplace=True).status_code == 200
        assert hub.generate("Hello", "sql", max_tokens=24, ignore_eos=True).text == alone["code"]
        text += "".join(stream)
    assert text == alone["json"] != alone["code"]


def test_unloading_leaves_a_running_answer_alone(tiny_server: Served):
    hub = tiny_server.hub
    expected = hub.generate("Hello", "json", max_tokens=24, ignore_eos=True).text
    with hub.stream("Hello", "json", max_tokens=24, ignore_eos=True) as stream:
        text = next(stream)
        assert unload(tiny_server, "json").status_code == 200
        text += "".join(stream)
    assert text == expected
    shown = tiny_server.call("GET", "/v1/adapterhub/adapters/json").json()
    assert (shown["place"], shown["running"]) == ("disk", 0)  # no answer needs the weights any more
