"""llama.cpp through llama-cpp-python. A batch of its has one adapter, so several are answered one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file

from adapterhub.gguf.architectures import Architecture
from adapterhub.lora.delta import LoraDelta
from adapterhub.peft_format.config import WEIGHTS_FILE
from benchmarks.llama_cpp import LlamaCpp as Batch
from benchmarks.versus.worker import Prompts, Task


def make(task: Task) -> LlamaCpp:
    """llama.cpp with a base in 4 bits."""
    if not task.gguf:
        raise ValueError("there is no GGUF file")
    return LlamaCpp(task, task.gguf)


def _deltas(folder: Path) -> dict[str, LoraDelta]:
    """The changes of an adapter whose alpha is its rank."""
    tensors = load_file(folder / WEIGHTS_FILE)
    prefix, suffix = "base_model.model.", ".lora_A.weight"
    modules = [name.removeprefix(prefix).removesuffix(suffix) for name in tensors if name.endswith(suffix)]
    return {
        module: LoraDelta(*(tensors[f"{prefix}{module}.{part}.weight"] for part in ("lora_A", "lora_B")))
        for module in modules
    }


class LlamaCpp:
    """One batch for the base, and one for each adapter."""

    def __init__(self, task: Task, file: str) -> None:
        torch.set_num_threads(task.threads)
        self._batch = Batch(file, task.rows, task.tokens)
        architecture = Architecture.of_folder(task.folder)
        self._adapters = {
            name: self._batch.load_adapter(_deltas(Path(folder)), architecture)
            for name, folder in task.adapters.items()
        }
        self.about: Mapping[str, str] = {
            "weights": "Q4_0",
            "computes": "Q8_0",
            "llama-cpp-python": metadata.version("llama-cpp-python"),
        }

    def answer(
        self, prompts: Prompts, adapters: Sequence[str | None], tokens: int
    ) -> Sequence[Sequence[int]]:
        """See `Contender.answer`."""
        answers: list[Sequence[int]] = [()] * len(prompts)
        for name in dict.fromkeys(adapters):
            rows = [row for row, other in enumerate(adapters) if other == name]
            self._batch.apply(self._adapters[name] if name else None)
            for row, answer in zip(rows, self._answer([prompts[row] for row in rows], tokens), strict=True):
                answers[row] = answer
        return answers

    def _answer(self, prompts: Prompts, tokens: int) -> list[Sequence[int]]:
        self._batch.start(prompts, [None] * len(prompts), tokens)
        steps = [self._batch.tokens]
        for _ in range(tokens - 1):
            self._batch.step()
            steps.append(self._batch.tokens)
        self._batch.stop()
        return list(zip(*steps, strict=True))
