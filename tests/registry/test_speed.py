"""The promises on speed, in a fresh process with only the imports behind it.

Processor time is measured, so that what else the machine is doing does not decide.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapterhub.registry import AdapterRegistry

ADAPTERS = 1000
LIST = """
import sys, time
from adapterhub.registry import AdapterRegistry
start = time.process_time()
cards = AdapterRegistry(sys.argv[1]).list()
print(time.process_time() - start, len(cards))
"""


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of a thousand adapters with well-filled cards, written directly."""
    from tests.registry.maker import make_adapter

    root = tmp_path_factory.mktemp("thousand")
    registry = AdapterRegistry(root / "registry")
    examples = [f"Please turn sentence number {number} into JSON with these keys" for number in range(20)]
    card = registry.register(
        "a0",
        make_adapter(root / "adapter"),
        description="Writes JSON. " * 5,
        tags=["json"],
        routing={"examples": examples},
    )
    registry.alias("a0", "prod", 1)
    text = (registry.folder(card) / "card.json").read_text()
    for number in range(1, ADAPTERS):
        home = registry.root / f"a{number}"
        (home / "1").mkdir(parents=True)
        (home / "1/card.json").write_text(text.replace('"name": "a0"', f'"name": "a{number}"'))
        (home / "refs.json").write_text('{"aliases": {"prod": 1}}')
    return registry.root


@pytest.mark.alone  # beside others it takes half as long again, of the processor's time too
def test_listing_a_thousand_adapters(thousand: Path) -> None:
    runs = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", LIST, str(thousand)], capture_output=True, text=True, check=True
        )
        seconds, count = done.stdout.split()
        assert int(count) == ADAPTERS
        runs.append(float(seconds))
    assert min(runs) < 0.3, f"list took {runs} s"


@pytest.mark.parametrize("ref", ["a500", "a500@1", "a500@prod"])
def test_resolving_among_a_thousand(thousand: Path, ref: str) -> None:
    registry = AdapterRegistry(thousand)
    runs = []
    for _ in range(200):
        start = time.process_time()
        registry.resolve(ref)
        runs.append(time.process_time() - start)
    assert statistics.median(runs) < 0.001


def test_importing_the_registry_is_light() -> None:
    heavy = {"torch", "transformers", "peft", "sklearn", "numpy", "huggingface_hub", "safetensors", "yaml"}
    code = (
        f"import sys, adapterhub.registry, adapterhub.base.fingerprint; print(*({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
