"""PEFT's method names on the hub."""

from pathlib import Path

import pytest
from peft import PeftModel
from peft.tuners.lora import LoraModel

from adapterhub import AdapterHub, AdapterNotFoundError, AdapterRegistry, EchoEngine, InvalidRequestError
from adapterhub.engine.interface import LoraRequest
from tests.parameters import parameters


class RecordingEngine(EchoEngine):
    """Records which adapters are loaded and unloaded."""

    def __init__(self) -> None:
        super().__init__()
        self.preloaded: list[str] = []
        self.unloaded: list[str] = []

    def preload(self, adapter: LoraRequest) -> None:
        self.preloaded.append(adapter.name)

    def unload(self, adapter: LoraRequest) -> None:
        self.unloaded.append(adapter.name)


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine()


@pytest.fixture
def hub(
    engine: RecordingEngine, tmp_path: Path, tiny_adapters: dict[str, Path], tiny_base: Path
) -> AdapterHub:
    registry = AdapterRegistry(tmp_path / "registry")
    for name in ("json", "code"):
        registry.register(name, tiny_adapters[name], base=tiny_base)
    return AdapterHub(engine, registry)


@pytest.mark.parametrize(
    ("method", "owner"),
    [
        ("load_adapter", PeftModel),
        ("delete_adapter", PeftModel),
        ("set_adapter", PeftModel),
        ("add_weighted_adapter", LoraModel),
    ],
)
def test_the_first_arguments_are_pefts(method, owner):
    positional = parameters(getattr(AdapterHub, method))
    assert positional == parameters(getattr(owner, method))[: len(positional)]


def test_load_adapter_registers_and_loads(hub, engine, tiny_adapters):
    card = hub.load_adapter(tiny_adapters["support"], "support", description="helps")
    assert (card.ref, card.description) == ("support@1", "helps")
    assert engine.preloaded == ["support@1"]
    assert hub.generate("Hi", "support", raw=True).text == "[support@1] Hi"
    assert hub.load_adapter(tiny_adapters["support"], "support").ref == "support@2"


def test_delete_adapter_removes_from_disk_and_memory(hub, engine, tiny_adapters):
    hub.load_adapter(tiny_adapters["code"], "json")
    hub.delete_adapter("json@1")
    assert engine.unloaded == ["json@1"]
    assert [card.version for card in hub.registry.versions("json")] == [2]
    for adapter in ("json@2", "json"):
        hub.set_adapter(adapter)
    hub.delete_adapter("json")
    assert engine.unloaded == ["json@1", "json@2"]
    for adapter in ("json", "json@2", "missing"):
        with pytest.raises(AdapterNotFoundError):
            hub.delete_adapter(adapter)
        with pytest.raises(AdapterNotFoundError):
            hub.set_adapter(adapter)


def test_add_weighted_adapter_is_a_blend(hub):
    card = hub.add_weighted_adapter(["json", "code"], [0.7, 0.3], "both", "cat")
    assert card.ref == "both@1"
    assert {(parent.name, parent.weight) for parent in card.lineage.parents} == {("json", 0.7), ("code", 0.3)}
    assert hub.blend("again", {"json": 0.7, "code": 0.3}).digest == card.digest
    cut = hub.add_weighted_adapter(["json", "code"], [1.0, 1.0], "cut", "svd", svd_rank=2)
    assert cut.peft.r == 2


@pytest.mark.parametrize(
    ("adapters", "weights", "settings", "message"),
    [
        (["json", "code"], [1.0], {}, "2 adapters and 1 weights"),
        (["json", "json"], [1.0, 1.0], {}, "twice"),
        (["json", "code"], [1.0, 1.0], {"combination_type": "magnitude_prune"}, "magnitude_prune"),
        (["json", "code"], [1.0, 1.0], {"combination_type": "ties"}, "density"),
    ],
)
def test_a_bad_combination_stores_nothing(hub, adapters, weights, settings, message):
    with pytest.raises(InvalidRequestError, match=message):
        hub.add_weighted_adapter(adapters, weights, "bad", **settings)
    with pytest.raises(AdapterNotFoundError):
        hub.registry.resolve("bad")
