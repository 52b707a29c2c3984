"""Requests that arrive at random, and two ways to serve them: in static batches, or as they arrive.

On a machine that others use too, the clock can be this process's own time. Then no time passes until the next request:
the clock jumps to it, and all times are what they would be if the process were alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from peft import PeftModel

from adapterhub.base.loading import Base
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import Request
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.lora.request import StoredLoraRequest
from benchmarks.contenders import StaticBatch
from benchmarks.shapes import VOCABULARY

_POLL_SECONDS = 0.01


class Clock:
    """Seconds since it was made.

    Args:
        kind: `"wall"`, or `"cpu"` for this process's own time.
    """

    def __init__(self, kind: str) -> None:
        self._read = time.process_time if kind == "cpu" else time.perf_counter
        self._jumps = kind == "cpu"
        self._zero = self._read()

    def now(self) -> float:
        """The time."""
        return self._read() - self._zero

    def idle_until(self, at: float) -> None:
        """Lets the time pass in which there is nothing to do."""
        while (left := at - self.now()) > 0:
            if self._jumps:
                self._zero -= left
            else:
                time.sleep(left)


@dataclass
class Arrival:
    """One request, and when it got its first and its last token, in seconds after its arrival."""

    at: float
    adapter: StoredLoraRequest
    prompt: list[int]
    first: float = 0.0
    last: float = 0.0


def arrivals(
    sources: Sequence[StoredLoraRequest],
    popularity: Sequence[float],
    *,
    requests: int,
    rate: float,
    prompt: int,
    seed: int,
) -> list[Arrival]:
    """Requests with exponential times between them.

    Args:
        sources: The adapters; those beyond the length of `popularity` are not requested.
        popularity: How often each is requested, relative to the others.
        requests: Number of requests.
        rate: Requests a second; 0 is all of them immediately.
        prompt: Tokens of each prompt.
        seed: Seed of the random choices.
    """
    chance = random.Random(seed)
    at, result = 0.0, []
    for adapter in chance.choices(sources[: len(popularity)], popularity, k=requests):
        at += chance.expovariate(rate) if rate else 0.0
        result.append(Arrival(at, adapter, chance.choices(range(3, VOCABULARY), k=prompt)))
    return result


def serve_in_batches(
    requests: Sequence[Arrival],
    max_batch: int,
    tokens: int,
    batch_for: Callable[[StoredLoraRequest], StaticBatch],
    *,
    by_adapter: bool,
    clock: Clock,
) -> None:
    """Serves the oldest request, and those that can share its batch, to the end; then the next."""
    left = list(requests)
    while left:
        clock.idle_until(left[0].at)
        here = [one for one in left if one.at <= clock.now()]
        members = [one for one in here if not by_adapter or one.adapter is here[0].adapter][:max_batch]
        batch = batch_for(members[0].adapter)
        batch.start(
            [one.prompt for one in members],
            [members[0].adapter if by_adapter else None] * len(members),
            tokens,
        )
        first = clock.now()
        for _ in range(tokens - 1):
            batch.step()
        batch.stop()
        for one in members:
            one.first, one.last = first - one.at, clock.now() - one.at
            left.remove(one)


class LazyPeft:
    """PEFT with adapters that are loaded at their first request and never unloaded."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._model: PeftModel | None = None

    def batch_for(self, adapter: StoredLoraRequest) -> StaticBatch:
        """A batch for one adapter."""
        if self._model is None:
            self._model = PeftModel.from_pretrained(
                self._base.model, adapter.folder, adapter_name=adapter.name, autocast_adapter_dtype=False
            ).eval()
        elif adapter.name not in self._model.peft_config:
            self._model.load_adapter(adapter.folder, adapter.name, autocast_adapter_dtype=False)
        return StaticBatch(self._model)


def serve_with_engine(engine: BatchingEngine, requests: Sequence[Arrival], tokens: int, clock: Clock) -> None:
    """Serves each request when it arrives."""
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)

    async def serve(one: Arrival) -> None:
        async for _ in engine.astream(Request(one.prompt, one.adapter, sampling)):
            one.last = clock.now() - one.at
            one.first = one.first or one.last

    async def serve_all() -> None:
        running: set[asyncio.Task[None]] = set()
        for one in requests:
            while clock.now() < one.at:
                if running:
                    await asyncio.sleep(_POLL_SECONDS)
                    running = {task for task in running if not task.done()}
                else:
                    clock.idle_until(one.at)
            running.add(asyncio.create_task(serve(one)))
        await asyncio.gather(*running)

    asyncio.run(serve_all())


def summary(requests: Sequence[Arrival], tokens: int) -> dict[str, float]:
    """What a contender achieved."""
    seconds = max(one.at + one.last for one in requests) - min(one.at for one in requests)
    first, last = [one.first for one in requests], [one.last for one in requests]
    return {
        "tokens_per_second": len(requests) * tokens / seconds,
        "first_token_p50": float(np.percentile(first, 50)),
        "first_token_p99": float(np.percentile(first, 99)),
        "latency_p50": float(np.percentile(last, 50)),
        "latency_p99": float(np.percentile(last, 99)),
    }
