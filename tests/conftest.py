"""Fixtures for all tests. Nothing here or below talks to anything but this machine."""

from __future__ import annotations

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

# Before anything imports Triton: without a GPU its kernels are interpreted.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import HealthCheck, settings

# A run repeats the one before it, and how busy the machine is decides nothing; `--hypothesis-profile=default` looks for
# examples that no run has seen.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")

ADAPTERS = ("json", "code", "support")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips GPU checks by name where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def pytest_collection_finish() -> None:
    """What is imported by now is garbage to nobody: looking through it takes 0.3 s each time, in whatever is timed."""
    gc.freeze()


@pytest.fixture(autouse=True)
def no_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the person who runs the tests must not change them."""
    for name in [name for name in os.environ if name.startswith("ADAPTERHUB_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama of two layers."""
    from tests.tiny import make_base

    return make_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="session")
def tiny_adapters(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Path]:
    """PEFT folders of three random adapters for `tiny_base`, with different ranks."""
    from tests.tiny import make_adapter

    root = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(root / name, tiny_base, seed=seed, r=2 * seed + 2)
        for seed, name in enumerate(ADAPTERS, start=1)
    }


@pytest.fixture(scope="session")
def tiny_registry(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_adapters: dict[str, Path]
) -> Path:
    """A registry of the three adapters. Tests that change one make their own."""
    from adapterhub import AdapterRegistry

    registry = AdapterRegistry(tmp_path_factory.mktemp("registry"))
    requests = {
        "json": [
            "give me the name and city as json",
            "turn this sentence into json",
            "extract the json fields",
        ],
        "code": [
            "write a python function",
            "a function that adds two numbers",
            "python code to reverse a list",
        ],
        "support": ["my printer is broken", "the router shows an error", "my screen stays black, help"],
    }
    for name, folder in tiny_adapters.items():
        registry.register(
            name,
            folder,
            base=tiny_base,
            description=f"The {name} adapter.",
            routing={"examples": requests[name]},
        )
    return registry.root
