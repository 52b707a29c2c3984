"""Labels by adapter: bounded in number, stable, and gone with the adapter."""

from pathlib import Path

import pytest

from adapterhub import AdapterRegistry
from adapterhub.server.metrics.adapter_labels import AdapterLabels
from tests.registry.maker import make_adapter


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    registry = AdapterRegistry(tmp_path / "registry")
    for name in ("ant", "bee", "cat"):
        registry.register(name, make_adapter(tmp_path / name))
    return registry


def test_versions_have_the_label_of_their_name(registry: AdapterRegistry):
    labels = AdapterLabels(registry, 10)
    assert labels.refresh() == ("base", "ant", "bee", "cat", "other")
    assert [labels.label(one) for one in ("base", "bee@7", "bee@prod", "bee")] == [
        "base",
        "bee",
        "bee",
        "bee",
    ]


def test_blends_are_one_label(registry: AdapterRegistry):
    labels = AdapterLabels(registry, 10)
    labels.refresh()
    assert labels.label("ant@1:0.7+bee@1:0.3") == labels.label("ant@1:0.5") == "other"


def test_the_number_is_bounded_and_no_adapter_changes_its_label(registry: AdapterRegistry, tmp_path: Path):
    labels = AdapterLabels(registry, 2)
    assert labels.refresh() == ("base", "ant", "bee", "other")
    assert labels.label("cat@1") == "other"
    registry.register("aardvark", make_adapter(tmp_path / "aardvark"))
    assert labels.refresh() == ("base", "ant", "bee", "other")
    assert labels.label("aardvark@1") == "other"


def test_a_removed_adapter_has_none_and_its_place_is_free(registry: AdapterRegistry):
    labels = AdapterLabels(registry, 2)
    labels.refresh()
    registry.remove("ant")
    assert labels.refresh() == ("base", "bee", "cat", "other")
    assert labels.label("ant@1") is None


def test_the_registry_is_read_again_only_when_it_has_changed(registry: AdapterRegistry, monkeypatch):
    labels = AdapterLabels(registry, 2)
    labels.refresh()
    monkeypatch.setattr(registry, "list", lambda: pytest.fail("read again"))
    labels.refresh()


def test_clients_name_the_version_only_where_the_bare_name_is_another(
    registry: AdapterRegistry, tmp_path: Path
):
    registry.register("bee", make_adapter(tmp_path / "bee2", seed=2))
    labels = AdapterLabels(registry, 10)
    labels.refresh()
    assert [labels.client_name(one) for one in ("bee@2", "bee@1", "ant@1")] == ["bee", "bee@1", "ant"]
    assert labels.client_name("ant@1:0.7+bee@1:0.3") == "ant:0.7+bee@1:0.3"
