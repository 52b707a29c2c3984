"""Shared by the engine's tests: adapters of every supported kind, PEFT as the reference, requests, and seams."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig

from adapterhub.base.loading import Base
from adapterhub.config import EngineLimits
from adapterhub.engine import BatchingEngine, PackedRunner, ScheduledSequence, adapter_loader
from adapterhub.engine.interface import Completion, Request
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import AdapterHubError
from adapterhub.lora.delta import ModuleDelta
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig, adapter_digest
from tests.tiny import ALL_LINEAR, ATTENTION


def adapter_settings(kind: str) -> dict[str, dict[str, Any]]:
    """Sixteen different kinds of adapters for an architecture: ranks 4 to 64, other layers, other scalings."""
    attention, every = ATTENTION[kind], ALL_LINEAR[kind]
    mlp = ["c_fc", "mlp.c_proj"] if kind == "gpt2" else ["gate_proj", "up_proj", "down_proj"]
    part = "h.1.mlp.c_fc" if kind == "gpt2" else "layers.1.mlp.up_proj"
    patterns = {"rank_pattern": {attention[0]: 8, part: 5}, "alpha_pattern": {attention[0]: 3, part: 20}}
    return {
        "lora-4": {"r": 4, "target_modules": attention},
        "lora-6": {"r": 6, "target_modules": attention},
        "mlp-8": {"r": 8, "target_modules": mlp},
        "part-12": {"r": 12, "target_modules": [part]},
        "all-4": {"r": 4, "target_modules": every},
        "all-16": {"r": 16, "target_modules": every},
        "all-32": {"r": 32, "target_modules": every},
        "all-64": {"r": 64, "target_modules": every},
        "rslora-8": {"r": 8, "target_modules": attention, "use_rslora": True},
        "rslora-24": {"r": 24, "target_modules": every, "use_rslora": True},
        "dora-4": {"r": 4, "target_modules": attention, "use_dora": True},
        "dora-16": {"r": 16, "target_modules": every, "use_dora": True},
        "dora-mlp-8": {"r": 8, "target_modules": mlp, "use_dora": True},
        "patterns-16": {"r": 16, "target_modules": every, **patterns},
        "patterns-4": {"r": 4, "target_modules": [attention[0], part], **patterns},
        "everything-64": {"r": 64, "target_modules": every, "use_rslora": True, "use_dora": True, **patterns},
    }


def make_adapters(root: Path, base: Path, settings: Mapping[str, dict[str, Any]]) -> dict[str, Path]:
    """Writes random adapters in PEFT's format, large enough to change every completion: name -> folder."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    conv = model.config.model_type == "gpt2"
    configs = {
        name: LoraConfig(**{"lora_alpha": 8, "task_type": "CAUSAL_LM", "fan_in_fan_out": conv, **one})
        for name, one in settings.items()
    }
    first, *others = configs
    adapted = get_peft_model(model, configs[first], adapter_name=first)
    for name in others:
        adapted.add_adapter(name, configs[name])
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
        if "lora_magnitude_vector" in name:
            parameter.data.mul_(torch.empty_like(parameter).uniform_(0.7, 1.3))
    adapted.save_pretrained(root)
    return {name: root / name for name in configs}


def stored_request(name: str, folder: Path) -> StoredLoraRequest:
    """What a request for the adapter in a folder asks the engine for."""
    digest = adapter_digest(AdapterConfig.read(folder).settings, folder / WEIGHTS_FILE)
    return StoredLoraRequest(name, digest, folder)


def twin_of(source: StoredLoraRequest, folder: Path) -> StoredLoraRequest:
    """The same weights under another digest: its config has a pattern that matches no module."""
    folder.mkdir(parents=True)
    (folder / WEIGHTS_FILE).hardlink_to(source.folder / WEIGHTS_FILE)
    config = json.loads((source.folder / CONFIG_FILE).read_bytes())
    config["alpha_pattern"] = {**config.get("alpha_pattern", {}), folder.name: 1}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return stored_request(folder.name, folder)


def sources_of(folders: Mapping[str, Path]) -> dict[str, StoredLoraRequest]:
    """The `StoredLoraRequest` of each folder."""
    return {name: stored_request(name, folder) for name, folder in folders.items()}


class Reference:
    """PEFT over a base of its own, one adapter at a time.

    Args:
        model: A transformers model.
        folders: The adapters' folders.
    """

    def __init__(self, model: Any, folders: Mapping[str, Path]) -> None:
        first, *others = folders
        self.model = PeftModel.from_pretrained(model, folders[first], adapter_name=first)
        for name in others:
            self.model.load_adapter(folders[name], name)
        self.model.eval().generation_config.eos_token_id = None

    @torch.inference_mode()
    def logits(self, name: str | None, ids: Sequence[int]) -> torch.Tensor:
        """Of every token, shape (tokens, vocabulary)."""
        with self._as(name):
            logits: torch.Tensor = self.model(input_ids=torch.tensor([ids])).logits[0]
        return logits

    @torch.inference_mode()
    def generate(self, name: str | None, ids: Sequence[int], tokens: int) -> list[int]:
        """A greedy completion of this many tokens."""
        config = GenerationConfig(max_new_tokens=tokens, pad_token_id=0)
        with self._as(name):
            out = self.model.generate(input_ids=torch.tensor([ids]), generation_config=config)
        return out[0, len(ids) :].tolist()

    def _as(self, name: str | None) -> Any:
        if name is None:
            return self.model.disable_adapter()
        self.model.set_adapter(name)
        return nullcontext()


def request(
    prompt: Sequence[int], adapter: StoredLoraRequest | None = None, priority: int = 0, **sampling: object
) -> Request:
    """A request for exactly twelve tokens unless `sampling` changes it."""
    params = SamplingParams.of({"max_tokens": 12, "ignore_eos": True}, sampling)
    return Request(prompt, adapter, params, priority=priority)


def answer(engine: BatchingEngine, one: Request) -> Completion:
    """The first completion of a request that is alone in its batch."""
    return engine.generate([one])[0][0]


def tokens(engine: BatchingEngine, one: Request) -> list[int]:
    """The tokens of that completion."""
    return list(answer(engine, one).token_ids)


def prompt_of(seed: int, length: int) -> list[int]:
    """A prompt of random tokens, none of them special."""
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def counts(engine: BatchingEngine) -> dict[str, int]:
    """What must be zero once all requests have ended."""
    stats = engine.stats()
    return {
        "running": stats.running,
        "waiting": stats.waiting,
        "slot_users": stats.slot_users,
        "kv_slots": stats.kv_slots,
    }


NOTHING = {"running": 0, "waiting": 0, "slot_users": 0, "kv_slots": 0}


def in_threads(work: Sequence[Callable[[], None]], seconds: float = 20.0) -> None:
    """Runs all functions concurrently; fails if one does not return in time, or raises."""
    errors: list[BaseException] = []

    def guarded(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(one,), daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


def outcomes(engine: BatchingEngine, batch: Sequence[Request]) -> list[list[int] | AdapterHubError]:
    """Runs each request in a thread of its own; their tokens or errors."""
    got: dict[int, list[int] | AdapterHubError] = {}

    def ask(number: int) -> None:
        try:
            got[number] = tokens(engine, batch[number])
        except AdapterHubError as error:
            got[number] = error

    in_threads([lambda number=number: ask(number) for number in range(len(batch))], 60)  # type: ignore[misc]
    return [got[number] for number in range(len(batch))]


def engine_threads() -> set[threading.Thread]:
    """The threads of all open engines."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("adapterhub-")}


class RunnerSeam:
    """A `Runner` around a `PackedRunner`; a test may replace `before_step` and `after_load`.

    Args:
        inner: Does the work.
    """

    def __init__(self, inner: PackedRunner) -> None:
        self._inner = inner
        self.before_step: Callable[[Sequence[ScheduledSequence]], object] = lambda _: None
        self.after_load: Callable[[int, Mapping[str, ModuleDelta]], object] = lambda *_: None
        self.make_caches = inner.make_caches
        self.name, self.forward, self.proof = inner.name, inner.forward, inner.proof

    @property
    def adapter_bytes(self) -> int:
        return self._inner.adapter_bytes

    def step(self, sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
        self.before_step(sequences)
        return self._inner.step(sequences)

    def load_adapter(self, slot: int, deltas: Mapping[str, ModuleDelta]) -> None:
        self._inner.load_adapter(slot, deltas)
        self.after_load(slot, deltas)

    def clear_adapter(self, slot: int) -> None:
        self._inner.clear_adapter(slot)


class LoaderSeam:
    """An adapter loader that notes what it loads; a test may replace `before_load`."""

    def __init__(self, load: Callable[[StoredLoraRequest], Mapping[str, ModuleDelta]]) -> None:
        self._load = load
        self.loaded: list[str] = []
        self.before_load: Callable[[StoredLoraRequest], object] = lambda _: None

    def __call__(self, adapter: StoredLoraRequest) -> Mapping[str, ModuleDelta]:
        self.loaded.append(adapter.name)
        self.before_load(adapter)
        return self._load(adapter)


@dataclass(frozen=True)
class Seams:
    """An engine with its base, and the seams of its runner and loader."""

    engine: BatchingEngine
    base: Base
    runner: RunnerSeam
    loader: LoaderSeam


def seams_of(base: Base, limits: EngineLimits) -> Seams:
    """An engine whose forward passes and loads a test can watch, delay and break."""
    loader = LoaderSeam(adapter_loader(base))
    base.claim()
    runner = RunnerSeam(PackedRunner(base, max_loras=limits.max_loras))
    return Seams(BatchingEngine(base, limits, runner=runner, load_adapter=loader), base, runner, loader)
