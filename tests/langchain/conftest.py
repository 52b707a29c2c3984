"""Hubs with a model, each one for all tests that need it."""

from collections.abc import Iterator

import pytest

from adapterhub import AdapterHub
from adapterhub.demo import demo_registry_folder


@pytest.fixture(scope="package")
def live_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterHub]:
    """A random base of one layer with three random adapters, under the default settings; tests leave it as it is."""
    from tests.tiny import make_adapter, make_base

    root = tmp_path_factory.mktemp("live")
    base = make_base(root / "base", num_hidden_layers=1, max_position_embeddings=8192)
    hub = AdapterHub.from_pretrained(base, root / "registry", quantization=None)
    for seed, name in enumerate(("json", "code", "support"), start=1):
        hub.registry.register(name, make_adapter(root / name, base, seed=seed), base=base)
    yield hub
    hub.close()


@pytest.fixture(scope="package")
def shipped_hub() -> Iterator[AdapterHub]:
    """The shipped base and adapters; tests leave it as it is."""
    with AdapterHub.from_pretrained("adapterhub-demo", demo_registry_folder()) as hub:
        yield hub
