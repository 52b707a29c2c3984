"""The tasks as the scoring sees them: held-out requests, the system prompt, and the program that judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from examples.demo.tasks import Record
from examples.demo_real import calculate, extraction, intents, maths
from examples.demo_real.data import read

SEED = 3


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        heldout: `n` requests that training has none of.
        score: Whether an answer is right.
        system: The system prompt.
        max_tokens: Of an answer.
        base_system: The bare base's system prompt, if another one suits it better.
    """

    heldout: Callable[[int], list[Record]]
    score: Callable[[Record, str], bool]
    system: str
    max_tokens: int
    base_system: str = ""


def _of_file(name: str) -> Callable[[int], list[Record]]:
    def heldout(n: int) -> list[Record]:
        records = read(name)
        chosen = np.random.default_rng(SEED).permutation(len(records))[:n]
        return [records[i] for i in sorted(chosen)]

    return heldout


TASKS = {
    "maths": Task(
        _of_file("maths-heldout.jsonl"),
        maths.score,
        maths.SYSTEM,
        160,
        base_system=calculate.BASE_SYSTEM,
    ),
    "calculate": Task(
        lambda n: calculate.generate("heldout", n, SEED),
        calculate.score,
        calculate.SYSTEM,
        100,
        base_system=calculate.BASE_SYSTEM,
    ),
    "extract": Task(
        lambda n: extraction.generate("heldout", n, SEED), extraction.score, extraction.SYSTEM, 100
    ),
    "intents": Task(
        _of_file("intents-heldout.jsonl"),
        intents.score,
        intents.SYSTEM,
        24,
        base_system=intents.BASE_SYSTEM,
    ),
}
