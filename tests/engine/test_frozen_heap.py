"""A hub's garbage collections are short, and freezing leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub import AdapterHub
from adapterhub.errors import ConfigError

LIFE = """
import gc, json, sys, time, weakref
from adapterhub import AdapterHub
kind, base, registry, quantization = sys.argv[1:]
if kind == "frozen before":
    gc.freeze()
before = gc.get_freeze_count()
def load():
    return AdapterHub.from_pretrained(base, registry, quantization=quantization, device="cpu", kv_cache_mib=16)
hub = load()
model = weakref.ref(hub.engine._base.model)
for name in ("json", None):
    hub.generate("Hi", name, max_tokens=3)
loaded = gc.get_freeze_count()
started = time.thread_time(); gc.collect(); seconds = time.thread_time() - started
if kind != "dropped":
    hub.close()
del hub
gc.collect()
again = load()
print(json.dumps([before, loaded, seconds, model() is None, gc.get_freeze_count() > before]))
"""


def life(kind: str, *arguments: str) -> list[Any]:
    command = [sys.executable, "-c", LIFE, kind, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    values: list[Any] = json.loads(done.stdout)
    return values


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("kind", ["closed", "dropped"])
def test_a_hub_freezes_what_is_loaded_and_leaves_no_base_behind(
    kind: str, quantization: str, tiny_base: Path, tiny_registry: Path
):
    before, loaded, seconds, collected, again = life(kind, str(tiny_base), str(tiny_registry), quantization)
    assert before == 0
    assert loaded > 100_000
    assert seconds < 0.1  # without, 0.2 to 0.4
    assert collected, "the base is garbage once its hub is"
    assert again, "the next hub freezes anew"


@pytest.mark.parametrize("error", [ConfigError("x"), KeyboardInterrupt()])
def test_a_hub_that_cannot_be_made_leaves_nothing_frozen(
    monkeypatch: pytest.MonkeyPatch, tiny_base: Path, tiny_registry: Path, error: BaseException
):
    released: list[bool] = []

    class Heap:
        def release(self) -> None:
            released.append(True)

    class BrokenHub(AdapterHub):
        def __init__(self, *_: Any, **__: Any) -> None:
            raise error

    monkeypatch.setattr("adapterhub.engine.frozen_heap.FrozenHeap", Heap)
    with pytest.raises(type(error)):
        BrokenHub.from_pretrained(tiny_base, tiny_registry, device="cpu", kv_cache_mib=16)
    assert released


def test_a_process_that_has_frozen_objects_keeps_its_own(tiny_base: Path, tiny_registry: Path):
    before, loaded, _, collected, again = life("frozen before", str(tiny_base), str(tiny_registry), "none")
    assert 0 < loaded <= before
    assert collected
    assert not again
