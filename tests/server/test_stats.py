"""How busy the engine is, over HTTP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from starlette.testclient import TestClient

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.engine import EngineStats
from adapterhub.server import create_app


class BusyEngine(EchoEngine):
    def stats(self) -> EngineStats:
        busy = EngineStats(running=3, waiting=1, tokens=70, tokens_per_second=412.5)
        return replace(busy, resident=2, max_loras=8, kv_cache_usage=0.37)


def test_the_engines_figures_are_shown(tmp_path: Path):
    with (
        AdapterHub(BusyEngine("/models/small"), AdapterRegistry(tmp_path)) as hub,
        TestClient(create_app(hub)) as client,
    ):
        stats = client.get("/v1/adapterhub/stats").json()
    assert stats == {
        "object": "adapterhub.stats",
        "base": "small",
        "base_digest": None,
        "running": 3,
        "waiting": 1,
        "tokens": 70,
        "tokens_per_second": 412.5,
        "resident": 2,
        "max_loras": 8,
        "kv_cache_usage": 0.37,
    }
