"""This project's engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import adapterhub
from adapterhub.base.loading import Base, load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import Request
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.peft_format.config import WEIGHTS_FILE, AdapterConfig, adapter_digest
from benchmarks.versus.worker import Prompts, Task


def make(task: Task) -> Adapterhub:
    """An engine, with the defaults of `load_base` for what the task leaves open."""
    return Adapterhub(task)


def stored_request(name: str, folder: str) -> StoredLoraRequest:
    """An adapter in a folder, as engines take it."""
    digest = adapter_digest(AdapterConfig.read(Path(folder)).settings, Path(folder) / WEIGHTS_FILE)
    return StoredLoraRequest(name, digest, Path(folder))


def load_task_base(task: Task) -> Base:
    """The base as a task says, with the defaults of `load_base` for what it leaves open."""
    settings: dict[str, Any] = {}
    if task.weights:
        settings["quantization"] = None if task.weights == "none" else task.weights
    if task.compute_dtype:
        settings["compute_dtype"] = task.compute_dtype
    return load_base(task.folder, device="cpu", **settings)


class Adapterhub:
    """`BatchingEngine`, with all adapters in their slots."""

    def __init__(self, task: Task) -> None:
        base = load_task_base(task)
        limits = EngineLimits(max_loras=max(1, len(task.adapters)), max_batch_size=task.rows)
        self._engine = BatchingEngine(base, limits)
        self._adapters = {name: stored_request(name, folder) for name, folder in task.adapters.items()}
        for adapter in self._adapters.values():
            self._engine.preload(adapter)
        stats = self._engine.stats()
        self.about: Mapping[str, str] = {
            "weights": base.quantization or str(base.compute_dtype).removeprefix("torch."),
            "computes": stats.matmul_dtype or stats.compute_dtype or "",
            "adapterhub": adapterhub.__version__,
        }

    def answer(
        self, prompts: Prompts, adapters: Sequence[str | None], tokens: int
    ) -> Sequence[Sequence[int]]:
        """See `Contender.answer`."""
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        requests = [
            Request(list(prompt), self._adapters[name] if name else None, sampling)
            for prompt, name in zip(prompts, adapters, strict=True)
        ]
        return [completion.token_ids for (completion,) in self._engine.generate(requests)]
