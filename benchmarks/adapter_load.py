"""What it costs to switch to an adapter, to load it and to evict it.

    python -m benchmarks.adapter_load --threads 1 --pin 0 --shape 200m

Switching is `AdapterHub.set_adapter`, which sets a context variable, against PEFT's, which walks every layer and every
loaded adapter. Loading is the time to first token of a one-token request, by where the adapter is before it: in its
LoRA slot, in host memory while another adapter has the slot, or on disk, in the page cache or not. The difference to an
adapter in its slot is the cost of the load. "Into the slot" is the same without engine and forward: checking, reading
and scaling the adapter, and filling the slot. Both are compared with reading the file alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.base.loading import Base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import Request
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.loading import load_adapter_deltas
from adapterhub.lora.model_manager import LoraModelManager
from adapterhub.lora.request import StoredLoraRequest
from benchmarks.common import parser, random_adapters, random_base, ratio, report, settle, timed
from benchmarks.contenders import load_peft, twin
from benchmarks.output import table

Times = dict[str, list[float]]
CACHED, UNCACHED = "on disk, cached", "on disk"
READING, INTO_SLOT, OURS = "reading alone", "ours, into the slot", "ours"


class Ours:
    """An engine with one LoRA slot, and requests for an adapter in each location."""

    def __init__(self, base: Base, adapter: StoredLoraRequest, other: StoredLoraRequest) -> None:
        self._engine = BatchingEngine(base, EngineLimits(max_loras=1))
        self._adapter, self._other = adapter, other

    def first_token(self, adapter: StoredLoraRequest | None = None) -> None:
        """Answers a prompt of one token with one token."""
        once = SamplingParams(max_tokens=1)
        self._engine.generate([Request([5], adapter or self._adapter, once)])

    def evict(self) -> None:
        """Unloads the adapter, from host memory too."""
        self._engine.unload(self._adapter)

    def round(self, options: argparse.Namespace, times: Times) -> None:
        """Measures all times once."""
        self.first_token()
        times.setdefault("in its slot", []).append(timed(self.first_token, options))
        self.first_token(self._other)
        times.setdefault("in host memory", []).append(timed(self.first_token, options))
        for location in (CACHED, UNCACHED):
            times.setdefault("evict", []).append(timed(self.evict, options))
            _prepare(self._adapter, location)
            times.setdefault(location, []).append(timed(self.first_token, options))

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()


class IntoSlot:
    """Loading an adapter from disk to host memory to a slot, without an engine."""

    def __init__(self, base: Base, adapter: StoredLoraRequest) -> None:
        self._layers = LoraModelManager(base.model, slots=1, dtype=base.compute_dtype)
        self._base, self._adapter = base, adapter
        self._deltas: dict[str, LoraDelta] = {}

    def read(self) -> None:
        """From disk to host memory."""
        base = self._base
        self._deltas = load_adapter_deltas(
            self._adapter, base.model, base.linear_layers, dtype=base.compute_dtype
        )

    def fill(self) -> None:
        """From host memory into the slot, replacing the adapter in it."""
        self._layers.load(0, self._deltas)

    def load(self) -> None:
        """From disk into the slot."""
        self.read()
        self.fill()

    def evict(self) -> None:
        """Empties host memory and slot."""
        self._layers.clear(0)
        self._deltas = {}

    def round(self, options: argparse.Namespace, times: Times) -> None:
        """Measures all times once."""
        self.load()
        times.setdefault("in host memory", []).append(timed(self.fill, options))
        for location in (CACHED, UNCACHED):
            times.setdefault("evict", []).append(timed(self.evict, options))
            _prepare(self._adapter, location)
            times.setdefault(location, []).append(timed(self.load, options))


class Peft:
    """PEFT with some other adapters loaded already."""

    def __init__(
        self, model: PeftModel, adapter: StoredLoraRequest, others: Sequence[StoredLoraRequest]
    ) -> None:
        self._model, self._adapter, self._others = model, adapter, others

    @torch.inference_mode()
    def first_token(self) -> None:
        """Switches and runs the model on one token."""
        self._model.set_adapter(self._adapter.name, inference_mode=True)
        self._model(input_ids=torch.tensor([[5]], device=self._model.device)).logits[0, -1].argmax().item()

    def load(self) -> None:
        """Loads the adapter, and answers."""
        self._model.load_adapter(self._adapter.folder, self._adapter.name, autocast_adapter_dtype=False)
        self.first_token()

    def evict(self) -> None:
        """Deletes the adapter."""
        self._model.delete_adapter(self._adapter.name)

    def round(self, options: argparse.Namespace, times: Times) -> None:
        """Measures all times once."""
        for location in (CACHED, UNCACHED):
            _prepare(self._adapter, location)
            times.setdefault(location, []).append(timed(self.load, options))
            times.setdefault("in its slot", []).append(timed(self.first_token, options))
            self._model.set_adapter(self._others[0].name)
            times.setdefault("evict", []).append(timed(self.evict, options))


def _prepare(adapter: StoredLoraRequest, location: str) -> None:
    """Loads an adapter's file into the page cache, or drops it from there (Linux)."""
    path = adapter.folder / "adapter_model.safetensors"
    path.read_bytes()
    if location == UNCACHED:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(adapter: StoredLoraRequest, options: argparse.Namespace, times: Times) -> None:
    """Reads the file."""
    for location in (CACHED, UNCACHED):
        _prepare(adapter, location)
        read = (adapter.folder / "adapter_model.safetensors").read_bytes
        times.setdefault(location, []).append(timed(read, options))


def loads(
    base: Base, sources: Sequence[StoredLoraRequest], options: argparse.Namespace
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Contender -> location -> median milliseconds, and load -> location -> ratio to reading alone."""
    adapter, *others = sources
    ours, into_slot = Ours(twin(base), adapter, others[0]), IntoSlot(twin(base), adapter)
    pefts = {
        f"PEFT, {count} loaded": Peft(load_peft(twin(base), others[:count]), adapter, others)
        for count in options.adapters
    }
    times: dict[str, Times] = {READING: {}, INTO_SLOT: {}, OURS: {}, **{name: {} for name in pefts}}
    for _ in range(options.rounds):
        _read(adapter, options, times[READING])
        into_slot.round(options, times[INTO_SLOT])
        ours.round(options, times[OURS])
        for name, peft in pefts.items():
            peft.round(options, times[name])
    ours.close()
    return {name: _medians(own) for name, own in times.items()}, _over_reading(times)


def _medians(times: Times) -> dict[str, float]:
    return {what: 1000 * statistics.median(taken[1:]) for what, taken in times.items()}


def _over_reading(times: Mapping[str, Times]) -> dict[str, dict[str, float]]:
    ours, locations = times[OURS], (CACHED, UNCACHED)
    more = {
        location: [cold - warm for cold, warm in zip(ours[location], ours["in its slot"], strict=True)]
        for location in locations
    }
    taken = {
        INTO_SLOT: times[INTO_SLOT],
        "first token, less one of an adapter in its slot": more,
        "first token": ours,
    }
    return {
        what: {location: ratio(own[location][1:], times[READING][location][1:]) for location in locations}
        for what, own in taken.items()
    }


def switches(
    base: Base, sources: Sequence[StoredLoraRequest], options: argparse.Namespace, scratch: Path
) -> dict[int, dict[str, float]]:
    """Number of adapters -> contender -> median microseconds of a switch."""
    registry, results = AdapterRegistry(scratch / "registry"), {}
    hub, model = AdapterHub(EchoEngine(), registry), None  # a switch does not use the engine
    for count in sorted(options.adapters):
        names = [source.name for source in sources[:count]]
        for source in sources[len(registry.list()) : count]:
            registry.register(source.name, source.folder)
            if model is None:
                model = load_peft(twin(base), [source])
            else:
                model.load_adapter(source.folder, source.name, autocast_adapter_dtype=False)
        contenders: dict[str, Callable[[str], None]] = {"ours": hub.set_adapter, "PEFT": model.set_adapter}
        times: Times = {name: [] for name in contenders}
        for index in range(20 * options.rounds):
            for name, switch in contenders.items():
                times[name].append(timed(lambda: switch(names[index % count]), options))  # noqa: B023  called immediately
        # The first switch to each name reads the registry.
        results[count] = {name: 1e6 * statistics.median(taken[count:]) for name, taken in times.items()}
    return results


def show(results: dict[str, Any]) -> None:
    """Prints the tables."""
    print("\nswitch, microseconds\n")
    table(["adapters", "ours", "PEFT"], [[n, t["ours"], t["PEFT"]] for n, t in results["switch"].items()])
    print(f"\nmilliseconds to the first token, of an adapter of {results['file_mib']:.1f} MiB that is\n")
    locations = ["in its slot", "in host memory", CACHED, UNCACHED, "evict"]
    table(["", *locations], [[name, *map(of.get, locations)] for name, of in results["load"].items()])
    print("\nover reading the file alone\n")
    table(["", CACHED, UNCACHED], [[what, *of.values()] for what, of in results["over_reading"].items()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    commands = parser(__doc__, rounds=10)
    commands.add_argument("--adapters", type=int, nargs="+", default=[1, 8, 32])
    options = commands.parse_args(arguments)
    settle(options)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        base = random_base(options, scratch)
        sources = random_adapters(options, base, max(options.adapters) + 1, scratch)
        os.sync()  # dirty pages cannot be dropped from the page cache
        load, over_reading = loads(base, sources, options)
        results = {
            "switch": switches(base, sources, options, scratch),
            "load": load,
            "over_reading": over_reading,
            "file_mib": (sources[0].folder / "adapter_model.safetensors").stat().st_size / 2**20,
        }
    report(options, results, lambda: show(results))


if __name__ == "__main__":
    main()
