"""Where adapters are and what runs on them, over HTTP, from an engine that holds weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from adapterhub import AdapterHub
from adapterhub.server import create_app


def test_where_each_adapter_is(tiny_base: Path, tiny_registry: Path):
    with (
        AdapterHub.from_pretrained(tiny_base, tiny_registry, quantization=None, max_loras=2) as hub,
        TestClient(create_app(hub)) as client,
    ):
        assert places(client) == {"code": "disk", "json": "disk", "support": "disk"}
        hub.generate("one", "code", max_tokens=3, ignore_eos=True)
        assert places(client) == {"code": "slot", "json": "disk", "support": "disk"}
        hub.generate("two", "support", max_tokens=2, ignore_eos=True)
        hub.generate("three", "json", max_tokens=5, ignore_eos=True)
        assert places(client) == {"code": "host", "json": "slot", "support": "slot"}
        hub.pin("json")
        listed = {one["name"]: one for one in adapters(client)}
        assert [listed[name]["tokens"] for name in ("code", "json", "support")] == [3, 5, 2]
        assert [listed[name]["pinned"] for name in ("code", "json", "support")] == [False, True, False]
        assert {(one["running"], one["waiting"]) for one in listed.values()} == {(0, 0)}


def adapters(client: TestClient) -> list[dict[str, Any]]:
    return client.get("/v1/adapterhub/adapters").json()["data"]


def places(client: TestClient) -> dict[str, str]:
    return {one["name"]: one["place"] for one in adapters(client)}
