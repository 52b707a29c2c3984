"""The contenders' processes, seen from the one that asks them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Self

from benchmarks.versus.worker import Task

LABELS = {"adapterhub": "adapterhub", "peft": "transformers, PEFT", "llama_cpp": "llama.cpp", "vllm": "vLLM"}
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Entry:
    """A contender as the command names it: `engine`, `engine:weights` or `engine:weights:dtype`.

    Attributes:
        engine: One of `LABELS`.
        weights: As in `Task`.
        compute_dtype: As in `Task`.
    """

    engine: str
    weights: str | None = None
    compute_dtype: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads it.

        Raises:
            ValueError: There is no such engine, or there are too many parts.
        """
        engine, *rest = text.split(":")
        if engine not in LABELS or len(rest) > 2:
            raise ValueError(
                f"{text!r} is not one of {', '.join(LABELS)}, with :weights and :dtype if need be"
            )
        return cls(engine, *rest)

    @property
    def label(self) -> str:
        """For the table."""
        return LABELS[self.engine]

    def processes(self) -> list[list[str]]:
        """The kinds of runs of each process: vLLM without LoRA is quicker on the bare base, and is given that."""
        return [["base"], ["adapters"]] if self.engine == "vllm" else [["base", "adapters"]]


class Process:
    """One contender's process.

    Args:
        task: What it is made for.
        python: Its interpreter.
        log: Where its stderr goes.

    Attributes:
        kinds: As in `Task`.
        about: What it computes with, once it is ready.
        missing: Why it cannot be asked; None if it can.
    """

    about: Mapping[str, str]
    missing: str | None

    def __init__(self, task: Task, python: str, log: IO[Any]) -> None:
        self.kinds = task.kinds
        environment = os.environ | {"OMP_NUM_THREADS": str(task.threads)}
        if python != sys.executable:
            environment["PYTHONPATH"] = str(_ROOT)
        self._process: subprocess.Popen[str] | None = None
        self._error = ""
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [python, "-m", "benchmarks.versus.worker", json.dumps(asdict(task))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=_ROOT,
                text=True,
            )
        except OSError as error:
            self._error = str(error)

    def wait(self) -> None:
        """Returns when it is ready, or has told why it is not."""
        ready = self._reply()
        self.about, self.missing = ready.get("about", {}), ready.get("missing")

    def ask(
        self, prompts: Sequence[Sequence[int]], adapters: Sequence[str | None], tokens: int
    ) -> tuple[float, list[list[int]]]:
        """Has requests answered, and returns the seconds that it took and the answers.

        Raises:
            RuntimeError: The process has ended, or has not given the tokens that were asked for.
        """
        asked = {"prompts": prompts, "adapters": adapters, "tokens": tokens}
        print(json.dumps(asked), file=self._process.stdin, flush=True)  # type: ignore[union-attr]
        reply = self._reply()
        if "seconds" not in reply or {len(answer) for answer in reply["tokens"]} != {tokens}:
            raise RuntimeError(f"{reply.get('missing', 'other tokens than were asked for')}; see --log.")
        return reply["seconds"], reply["tokens"]

    def close(self) -> None:
        """Ends it."""
        if self._process:
            self._process.communicate()

    def _reply(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process and self._process.stdout else ""
        return json.loads(line) if line else {"missing": self._error or "its process has ended; see --log"}


def start(entry: Entry, task: Task, vllm_python: str | None, log: IO[Any]) -> list[Process]:
    """Starts the processes of a contender; they are ready after `wait`."""
    python = vllm_python if entry.engine == "vllm" and vllm_python else sys.executable
    started = [Process(replace(task, kinds=kinds), python, log) for kinds in entry.processes()]
    if entry.engine == "adapterhub":  # it measures its products while it loads
        for process in started:
            process.wait()
    return started
