"""The shipped adapters' held-out requests, and how far two engines' answers to them are apart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from adapterhub import AdapterHub
from adapterhub.engine.interface import Completion
from examples.demo.data import TASKS

REQUESTS_OF_EACH_TASK = 50
SEED = 3  # as examples/demo/score.py
MAX_TOKENS = 160
SIDE_BY_SIDE = 16
# Both sides compute in float32, but sum in another order. A log-probability is the outcome of some 1,000 roundings.
ROUNDING = 1000 * float(np.finfo(np.float32).eps)  # 1.2e-4

Asked = tuple[str, dict[str, Any]]


def held_out_requests() -> list[Asked]:
    """Tasks, whose adapters have the same names, with requests; all tasks mixed."""
    tasks = [
        [(task, record) for record in module.generate("heldout", REQUESTS_OF_EACH_TASK, SEED)]
        for task, module in TASKS.items()
    ]
    return [one for asked in zip(*tasks, strict=True) for one in asked]


def answers(hub: AdapterHub, asked: Iterable[Asked]) -> list[Completion]:
    """The greedy answers, so many side by side that different adapters share steps."""

    def answer(one: Asked) -> Completion:
        task, record = one
        generation = hub.generate(
            record["messages"][:-1], task, tools=record.get("tools"), max_tokens=MAX_TOKENS, logprobs=2
        )
        return generation.completions[0]

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return list(pool.map(answer, asked))


def margin(one: Completion, other: Completion) -> float:
    """Where two answers first differ: how much either engine prefers its token to the other's, in nats."""
    for ours, theirs in zip(one.logprobs or (), other.logprobs or (), strict=False):
        if ours.token_id != theirs.token_id:
            preferences = (
                ours.logprob - ours.top.get(theirs.token_id, -math.inf),
                theirs.logprob - theirs.top.get(ours.token_id, -math.inf),
            )
            return max(preferences)
    return math.inf  # one of them goes on where the other has ended


def difference(one: Completion, other: Completion) -> float:
    """The largest difference between two equal answers' log-probabilities."""
    pairs = zip(one.logprobs or (), other.logprobs or (), strict=True)
    return max(abs(ours.logprob - theirs.logprob) for ours, theirs in pairs)
