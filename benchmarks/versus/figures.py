"""What every contender is asked, and the figures that its times give."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Seconds = Mapping[str, Sequence[float]]
"""Run -> seconds of its rounds."""
ROWS = 16


@dataclass(frozen=True)
class Run:
    """Requests that are made at once.

    Attributes:
        name: For `Seconds`.
        rows: How many.
        adapters: How many different ones they have; 0 for the bare base.
        prompt: Tokens of each prompt.
        tokens: Of each answer.
    """

    name: str
    rows: int
    adapters: int
    prompt: int
    tokens: int

    @property
    def kind(self) -> str:
        """`"base"` or `"adapters"`."""
        return "adapters" if self.adapters else "base"

    def prompts(self, vocabulary: int, seed: int) -> list[list[int]]:
        """Random prompts, the same for all contenders; others for each seed, so that no prefix cache knows them."""
        draw = random.Random(f"{self.prompt} {seed}")
        return [draw.choices(range(3, vocabulary), k=self.prompt) for _ in range(self.rows)]

    def names(self) -> list[str | None]:
        """The adapter of each request."""
        return [f"a{row % self.adapters}" if self.adapters else None for row in range(self.rows)]


@dataclass(frozen=True)
class Plan:
    """All runs of a round.

    Attributes:
        tokens: Of an answer.
        prompt: Tokens of a prompt that is answered.
        prefill: Tokens of the prompt that has one token as its answer.
    """

    tokens: int
    prompt: int = 32
    prefill: int = 512

    def runs(self, kinds: Sequence[str]) -> list[Run]:
        """The runs of some kinds. Without its first token, an answer's time is that of its decode steps."""
        found = [Run("prefill", 1, 0, self.prefill, 1)]
        for name, rows, adapters in _BATCHES:
            found += [
                Run(f"{name} first", rows, adapters, self.prompt, 1),
                Run(name, rows, adapters, self.prompt, self.tokens),
            ]
        return [run for run in found if run.kind in kinds]

    @property
    def room(self) -> int:
        """Tokens of the longest prompt and answer."""
        return max(self.prefill + 1, self.prompt + self.tokens)

    def figures(self, seconds: Seconds) -> dict[str, float]:
        """Title of a column -> figure, for the runs that there are: of the best round, which others disturbed least."""
        found = {}
        for name, *_ in _BATCHES:
            if name in seconds:
                steps = min(seconds[name]) - min(seconds[f"{name} first"])
                found[f"{name}, ms"] = 1000 * steps / (self.tokens - 1)
        if "prefill" in seconds:
            found[f"prefill {self.prefill}, ms"] = 1000 * min(seconds["prefill"])
        for name, rows, _ in _BATCHES:
            if rows > 1 and name in seconds:
                found[f"{name}, tokens/s"] = rows * self.tokens / min(seconds[name])
        return found

    def titles(self) -> list[str]:
        """Of all columns, in order."""
        every = {run.name: [2.0, 3.0] for run in self.runs(["base", "adapters"])}
        return list(self.figures(every))


_BATCHES = [
    ("1 row", 1, 0),
    ("1 row, 1 adapter", 1, 1),
    (f"{ROWS} rows", ROWS, 0),
    (f"{ROWS} rows, {ROWS} adapters", ROWS, ROWS),
]


def agreement(answers: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """The share of requests whose first tokens are the same."""
    same = [one[0] == other[0] for one, other in zip(answers, reference, strict=True)]
    return sum(same) / len(same)
