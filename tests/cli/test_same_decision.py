"""`adapterhub route` and `hub.route` decide alike on a registry with adapters of two bases."""

import shutil
from pathlib import Path

import pytest

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.base import BaseFingerprint
from tests.tiny import make_adapter, make_base

REQUESTS = (
    "write a python function",
    "the router shows an error",
    "give me the city as json",
    "a poem about python code",
    "Hello!",
)


@pytest.fixture(scope="module")
def other_base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "other", seed=9)


@pytest.fixture
def registry(copy, tmp_path: Path, other_base: Path) -> AdapterRegistry:
    """The registry that `copy` works on: three adapters for the tiny base, one for another."""
    registry = AdapterRegistry(tmp_path / "registry")
    folder = make_adapter(tmp_path / "poems", other_base)
    examples = ["a poem about the sea", "write a poem", "a poem about python code", "four lines that rhyme"]
    registry.register("poems", folder, base=other_base, routing={"examples": examples})
    return registry


def hub_on(registry: AdapterRegistry, base: Path) -> AdapterHub:
    engine = EchoEngine()
    engine.fingerprint = BaseFingerprint.of(base)
    return AdapterHub(engine, registry)


def decisions_of_both(copy, registry: AdapterRegistry, base: Path) -> list[tuple[dict, dict]]:
    """For each request, what the command printed and what the hub decided, as JSON has it."""
    with hub_on(registry, base) as hub:
        assert hub.router.settle(60)
        found = []
        for request in REQUESTS:
            decision = hub.route(request)
            printed = copy("route", request, "--json").json
            found.append((printed, {**vars(decision), "scores": dict(decision.ranked())}))
        return found


@pytest.mark.parametrize("saved", ["not at all", "by the command", "before the cards changed"])
def test_command_and_hub_decide_alike(copy, registry, tiny_base, saved):
    if saved != "not at all":
        assert copy("router", "fit", "--retention", 0.9).code == 0
    if saved == "before the cards changed":
        registry.update("json", routing={"phrases": ["as a record"]})
    for printed, decided in decisions_of_both(copy, registry, tiny_base):
        assert printed == decided
        assert printed["scores"].keys() <= {"json", "code", "support"}


def test_the_configured_base_counts(copy, registry, other_base, monkeypatch):
    monkeypatch.setenv("ADAPTERHUB_BASE", str(other_base))
    for printed, decided in decisions_of_both(copy, registry, other_base):
        assert printed == decided
        assert printed["scores"].keys() <= {"poems"}


def test_a_saved_router_holds_the_adapters_for_the_base(copy, registry):
    routes = copy("router", "fit", "--json").json["routes"]
    assert [one["adapter"] for one in routes] == ["code", "json", "support"]
    assert "candidates" not in copy("route", "write a python function", "--json").err


def test_a_base_that_cannot_be_read_leaves_all_adapters_and_warns(copy, registry, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPTERHUB_BASE", str(tmp_path / "missing"))
    shown = copy("route", "a poem about the sea", "--json")
    assert set(shown.json["scores"]) == {"code", "json", "poems", "support"}
    assert "Adapters for all bases are candidates" in shown.err


def test_no_warning_where_all_adapters_have_one_base(copy, registry, tmp_path, monkeypatch):
    shutil.rmtree(registry.root / "poems")
    monkeypatch.setenv("ADAPTERHUB_BASE", str(tmp_path / "missing"))
    assert "candidates" not in copy("route", "write a python function", "--json").err
