"""Load: many threads, many adapters, random cancellations; every request ends once, with its own adapter's answer."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import LoraRequest, Request
from adapterhub.engine.kv.cache import KVSlotPool
from adapterhub.errors import CapacityError, InvalidRequestError
from adapterhub.lora.stacked_weights import StackedLoraWeights
from tests.engine.maker import (
    NOTHING,
    counts,
    engine_threads,
    in_threads,
    make_adapters,
    outcomes,
    prompt_of,
    request,
    sources_of,
    tokens,
)
from tests.tiny import ALL_LINEAR, make_base

ADAPTERS = 32
PROMPTS = [prompt_of(seed, length) for seed, length in enumerate([3, 8, 21, 70])]
LIMITS = EngineLimits(max_loras=8, max_cpu_loras=16, max_batch_size=16, kv_cache_mib=16, max_queue=128)
MOST_SECONDS = 200.0


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), num_hidden_layers=1)


@pytest.fixture(scope="module")
def sources(tmp_path_factory, base: Path) -> list[LoraRequest]:
    settings = {
        f"adapter-{n}": {"r": 4 + n % 3, "target_modules": ALL_LINEAR["llama"], "use_dora": n % 8 == 0}
        for n in range(ADAPTERS)
    }
    return list(sources_of(make_adapters(tmp_path_factory.mktemp("adapters"), base, settings)).values())


def engine_of(base: Path, limits: EngineLimits) -> BatchingEngine:
    return BatchingEngine(load_base(base, quantization=None, device="cpu"), limits)


@pytest.fixture
def engine(base: Path) -> Iterator[BatchingEngine]:
    others = engine_threads()
    engine = engine_of(base, LIMITS)
    yield engine
    engine.close()
    assert engine_threads() <= others


class Callers:
    """Threads that ask in all ways, and note how each request ends."""

    def __init__(self, engine: BatchingEngine, wanted: dict[tuple[str, int], list[int]]) -> None:
        self.engine, self.wanted = engine, wanted
        self.ends: Counter[str] = Counter()
        self.wrong: list[tuple[str, int]] = []
        self._lock = threading.Lock()

    def ask(self, seed: int, requests: int, sources: list[LoraRequest]) -> None:
        """One caller's requests, one after the other."""
        chance = random.Random(seed)
        for _ in range(requests):
            source, prompt = chance.choice(sources), chance.randrange(len(PROMPTS))
            way = chance.choice([self._generate, self._stream, self._leave, self._task, self._cancel])
            got, whole = way(request(PROMPTS[prompt], source, max_tokens=8), chance.randrange(8))
            right = self.wanted[source.name, prompt]
            with self._lock:
                self.ends[way.__name__] += 1
                if got != (right if whole else right[: len(got)]):
                    self.wrong.append((source.name, prompt))

    def _generate(self, one: Request, _: int) -> tuple[list[int], bool]:
        return tokens(self.engine, one), True

    def _stream(self, one: Request, _: int) -> tuple[list[int], bool]:
        pieces = list(self.engine.stream(one))
        assert [piece.finish_reason for piece in pieces] == [None] * 7 + ["length"], "it ends once"
        return [piece.token_id for piece in pieces], True

    def _leave(self, one: Request, after: int) -> tuple[list[int], bool]:
        stream = self.engine.stream(one)
        got = [next(stream).token_id for _ in range(after)]
        stream.close()
        return got, False

    def _task(self, one: Request, _: int) -> tuple[list[int], bool]:
        return list(asyncio.run(self.engine.agenerate([one]))[0][0].token_ids), True

    def _cancel(self, one: Request, after: int) -> tuple[list[int], bool]:
        async def cancelled() -> bool:
            task = asyncio.create_task(self.engine.agenerate([one]))
            await asyncio.sleep(after / 100)
            return task.cancel()

        asyncio.run(cancelled())
        return [], False


class Watcher:
    """Looks at the engine all the time, as a dashboard would."""

    def __init__(self, engine: BatchingEngine) -> None:
        self._engine, self._ended = engine, threading.Event()
        self.most: Counter[str] = Counter()
        self.looks = 0

    def watch(self) -> None:
        while not self._ended.wait(0.002):
            stats = self._engine.stats()
            self.looks += 1
            for name in ("running", "waiting", "resident", "slot_users", "host_adapters", "kv_bytes"):
                self.most[name] = max(self.most[name], getattr(stats, name))

    def end(self) -> None:
        self._ended.set()


def load(engine: BatchingEngine, sources: list[LoraRequest], requests: int, threads: int) -> None:
    """So many requests by so many threads; checks every answer, and that nothing is left."""
    keys = [(source, place) for source in sources for place in range(len(PROMPTS))]
    wanted = {
        (source.name, place): tokens(engine, request(PROMPTS[place], source, max_tokens=8))
        for source, place in keys
    }
    assert len({tuple(answer) for answer in wanted.values()}) > 0.9 * len(wanted), (
        "answers tell adapters apart"
    )
    before = set(threading.enumerate()) - engine_threads()
    callers, watcher = Callers(engine, wanted), Watcher(engine)
    watching = threading.Thread(target=watcher.watch, daemon=True)
    watching.start()
    share = requests // threads + 1
    in_threads(
        [lambda n=n: callers.ask(n, min(share, requests - n * share), sources) for n in range(threads)],  # type: ignore[misc]
        MOST_SECONDS,
    )
    end = time.monotonic() + 20
    while counts(engine) != NOTHING and time.monotonic() < end:
        time.sleep(0.01)  # the driver's thread ends what was cancelled
    watcher.end()
    watching.join()
    assert callers.wrong == []
    assert callers.ends.total() == requests
    assert len(callers.ends) == 5
    assert counts(engine) == NOTHING
    assert set(threading.enumerate()) - engine_threads() == before
    assert watcher.looks > 10
    assert watcher.most["running"] <= LIMITS.max_batch_size
    assert watcher.most["resident"] <= LIMITS.max_loras
    assert watcher.most["waiting"] <= LIMITS.max_queue
    assert watcher.most["host_adapters"] <= LIMITS.max_cpu_loras + LIMITS.max_cpu_loras // 2, (
        "and those on their way"
    )
    assert watcher.most["kv_bytes"] <= LIMITS.kv_cache_bytes
    assert engine.stats().host_adapters <= LIMITS.max_cpu_loras


@pytest.mark.parametrize("requests", [500, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_request_ends_once_with_its_own_answer(
    engine: BatchingEngine, sources: list[LoraRequest], requests: int
):
    load(engine, sources, requests=requests, threads=64)


def test_past_its_end_the_queue_refuses_and_says_that_a_retry_may_help(
    base: Path, sources: list[LoraRequest]
):
    engine = engine_of(base, EngineLimits(max_loras=2, max_batch_size=2, max_queue=4, kv_cache_mib=16))
    batch = [request(PROMPTS[0], sources[number % 3]) for number in range(4)]
    with pytest.raises(InvalidRequestError, match="max_queue=4") as refused:  # no retry can help this one
        engine.generate([*batch, batch[0]])
    assert not refused.value.retryable
    assert (counts(engine), engine.stats().steps) == (NOTHING, 0)
    wanted = [list(one[0].token_ids) for one in engine.generate(batch)]
    got = outcomes(engine, batch * 10)
    refusals = [one for one in got if isinstance(one, CapacityError)]
    assert 0 < len(refusals) < 40
    assert all(refusal.retryable for refusal in refusals)
    assert all(
        one in (wanted[place % 4],) for place, one in enumerate(got) if not isinstance(one, CapacityError)
    )
    assert counts(engine) == NOTHING
    engine.close()


def test_hot_adapters_do_not_starve_a_cold_one(base: Path, sources: list[LoraRequest]):
    engine = engine_of(base, EngineLimits(max_loras=2, max_batch_size=8, kv_cache_mib=16))
    patience, cold = 4 * 8, sources[2]
    order: list[str] = []
    whole = engine._scheduler._start

    def noting(job):
        started = whole(job)
        if started:
            order.append(job.adapter.name)
        return started

    engine._scheduler._start = noting  # type: ignore[method-assign]
    done = threading.Event()

    def hot(source: LoraRequest, length: int) -> None:
        while not done.is_set() and len(order) < 400:
            tokens(engine, request(PROMPTS[0], source, max_tokens=length))

    queued: list[int] = []

    def ask_cold() -> None:
        try:
            while len(order) < 20:
                time.sleep(0.001)
            engine._scheduler._host.prefetch(cold)  # the file's reading is no part of the waiting
            time.sleep(0.05)
            queued.append(len(order))
            tokens(engine, request(PROMPTS[0], cold))
        finally:
            done.set()

    in_threads([ask_cold, *(lambda s=s, n=n: hot(s, n) for s in sources[:2] for n in range(3, 11))], 60)  # type: ignore[misc]
    # Sixteen hot requests at most were there before it.
    assert order.index(cold.name) - queued[0] <= 16 + patience
    engine.close()


@pytest.mark.parametrize("distinct", [8, 32, 128])
def test_memory_is_bounded_however_many_adapters_are_asked_for(
    base: Path, sources: list[LoraRequest], distinct: int
):
    limits = EngineLimits(max_loras=8, max_cpu_loras=12, kv_cache_mib=16, max_queue=256)
    engine, chance = engine_of(base, limits), random.Random(0)
    # Copies under other digests: what is held is counted by digest, and the answer is the original's.
    many = [
        LoraRequest(f"copy-{n}", f"sha256:copy-{n}", sources[n % ADAPTERS].folder) for n in range(distinct)
    ]
    chosen = [chance.randrange(distinct) for _ in range(160)]
    watcher = Watcher(engine)
    watching = threading.Thread(target=watcher.watch, daemon=True)
    watching.start()
    got = engine.generate([request(PROMPTS[0], many[n], max_tokens=3) for n in chosen])
    watcher.end()
    watching.join()
    answers: dict[int, set[tuple[int, ...]]] = {}
    for n, one in zip(chosen, got, strict=True):
        answers.setdefault(n % ADAPTERS, set()).add(one[0].token_ids)
    assert all(len(same) == 1 for same in answers.values())
    stats = engine.stats()
    assert stats.resident <= 8
    assert stats.host_adapters <= 12
    assert watcher.most["resident"] <= 8
    assert watcher.most["host_adapters"] <= 12 + 6
    assert stats.loads >= min(distinct, 8)
    assert (stats.evictions == 0) == (distinct == 8)
    one = max(_size(engine, source) for source in sources[:4])
    assert stats.host_bytes <= 12 * 2 * one
    assert counts(engine) == NOTHING
    engine.close()


def _size(engine: BatchingEngine, source: LoraRequest) -> int:
    return sum(delta.bytes for delta in engine._scheduler._load(source).values())


def test_stats_can_be_read_while_the_first_adapters_come(
    engine: BatchingEngine, sources: list[LoraRequest], monkeypatch: pytest.MonkeyPatch
):
    """Pools of lanes are made and layers are wrapped meanwhile, by another thread."""
    tokens(engine, request(PROMPTS[0], sources[0]))
    lanes, layers = engine._scheduler._lanes, engine._scheduler._runner.layers

    def while_pools_are_made(pool: KVSlotPool) -> int:
        lanes._pools.setdefault(1024, KVSlotPool(lanes.shape, 1024))
        return pool.capacity

    def while_layers_are_wrapped(bank: StackedLoraWeights) -> int:
        layers._banks.setdefault("another", bank)
        return 1

    monkeypatch.setattr(KVSlotPool, "tokens", property(while_pools_are_made))
    monkeypatch.setattr(StackedLoraWeights, "bytes", property(while_layers_are_wrapped))
    assert engine.stats().kv_tokens > 0
