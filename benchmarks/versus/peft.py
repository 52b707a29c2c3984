"""transformers' forward over a static batch, and PEFT's over it for adapters: the loop alone, without `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata

from benchmarks.contenders import StaticBatch, load_peft, twin
from benchmarks.versus.adapterhub import load_task_base, stored_request
from benchmarks.versus.worker import Prompts, Task


def make(task: Task) -> Peft:
    """transformers and PEFT on the same weights."""
    return Peft(task)


class Peft:
    """The base without PEFT's layers, one adapter through `set_adapter`, and several as PEFT's mixed batch."""

    def __init__(self, task: Task) -> None:
        base = load_task_base(task)
        self._adapters = {name: stored_request(name, folder) for name, folder in task.adapters.items()}
        model = load_peft(twin(base), list(self._adapters.values()))
        self._base, self._one, self._mixed = (
            StaticBatch(base.model),
            StaticBatch(model),
            StaticBatch(model, mixed=True),
        )
        dtype = str(base.compute_dtype).removeprefix("torch.")
        self.about: Mapping[str, str] = {
            "weights": base.quantization or dtype,
            "computes": dtype,
            "transformers": metadata.version("transformers"),
            "peft": metadata.version("peft"),
        }

    def answer(
        self, prompts: Prompts, adapters: Sequence[str | None], tokens: int
    ) -> Sequence[Sequence[int]]:
        """See `Contender.answer`."""
        names = {name for name in adapters if name}
        batch = self._base if not names else self._one if len(names) == 1 else self._mixed
        batch.start(prompts, [self._adapters[name] if name else None for name in adapters], tokens)
        steps = [batch.tokens]
        for _ in range(tokens - 1):
            batch.step()
            steps.append(batch.tokens)
        batch.stop()
        return list(zip(*steps, strict=True))
