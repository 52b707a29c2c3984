"""A contender's process: it makes an engine, then answers the requests on stdin, each as one line of JSON.

python -m benchmarks.versus.worker '{"engine": "transformers", "folder": "...", ...}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Task:
    """What a contender is made for.

    Attributes:
        engine: The module in this folder that has its `make`.
        weights: How the base's linear layers are stored; None as the engine does it by default.
        compute_dtype: The dtype of its activations; None as the engine does it by default.
        kinds: `"base"`, `"adapters"` or both: what it is asked.
        folder: The base, in transformers' format.
        gguf: The base for llama.cpp, if there is one.
        adapters: Name -> folder, in PEFT's format.
        rank: Of the adapters.
        rows: Maximum number of requests at once.
        tokens: Maximum tokens of a request, prompt and answer.
        threads: To compute with.
        clock: `"wall"`, or `"cpu"` for the process's own time.
    """

    engine: str
    weights: str | None
    compute_dtype: str | None
    kinds: list[str]
    folder: str
    gguf: str | None
    adapters: dict[str, str]
    rank: int
    rows: int
    tokens: int
    threads: int
    clock: str


class Contender(Protocol):
    """Greedy answers to any number of requests at once.

    Attributes:
        about: What it computes with and in which version, for the table.
    """

    about: Mapping[str, str]

    def answer(
        self, prompts: Prompts, adapters: Sequence[str | None], tokens: int
    ) -> Sequence[Sequence[int]]:
        """Answers each prompt with so many tokens, under its adapter or none."""


def serve(task: Task) -> None:
    """Makes the contender, tells so on stdout, and answers until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print

    def reply(**fields: Any) -> None:
        print(json.dumps(fields), file=replies, flush=True)

    try:
        contender: Contender = import_module(f"benchmarks.versus.{task.engine}").make(task)
    except Exception as error:
        reply(missing=f"{type(error).__name__}: {error}")
        raise
    reply(about=dict(contender.about))
    clock = time.process_time if task.clock == "cpu" else time.perf_counter
    for line in sys.stdin:
        asked = json.loads(line)
        started = clock()
        tokens = contender.answer(**asked)
        reply(seconds=clock() - started, tokens=[list(map(int, row)) for row in tokens])


if __name__ == "__main__":
    serve(Task(**json.loads(sys.argv[1])))
