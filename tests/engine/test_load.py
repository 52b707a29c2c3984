"""Load: many threads, many adapters, random aborts; every request ends once, with the completion of its adapter."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapterhub.base.loading import Base, load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import Request
from adapterhub.engine.kv.prefix_cache import PrefixCache
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.engine.runners.row_by_row import RowRunner
from adapterhub.errors import CapacityError, InvalidRequestError
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.loading import load_folder_deltas
from adapterhub.lora.request import StoredLoraRequest
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
    twin_of,
)
from tests.tiny import ALL_LINEAR, make_base

ADAPTERS = 32
PROMPTS = [prompt_of(seed, length) for seed, length in enumerate([3, 8, 21, 70])]
LIMITS = EngineLimits(max_loras=8, max_cpu_loras=16, max_batch_size=16, kv_cache_mib=16, max_queue=128)
MAX_SECONDS = 200.0


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), num_hidden_layers=1)


@pytest.fixture(scope="module")
def sources(tmp_path_factory, base: Path) -> list[StoredLoraRequest]:
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
    """Threads that use all methods, and note how each request ends."""

    def __init__(self, engine: BatchingEngine, wanted: dict[tuple[str, int], list[int]]) -> None:
        self.engine, self.wanted = engine, wanted
        self.ends: Counter[str] = Counter()
        self.wrong: list[tuple[str, int]] = []
        self._lock = threading.Lock()

    def ask(self, seed: int, requests: int, sources: list[StoredLoraRequest]) -> None:
        """The requests of one caller, one after the other."""
        chance = random.Random(seed)
        for _ in range(requests):
            source, prompt = chance.choice(sources), chance.randrange(len(PROMPTS))
            method = chance.choice([self._generate, self._stream, self._abort, self._task, self._cancel])
            got, whole = method(request(PROMPTS[prompt], source, max_tokens=8), chance.randrange(8))
            right = self.wanted[source.name, prompt]
            with self._lock:
                self.ends[method.__name__] += 1
                if got != (right if whole else right[: len(got)]):
                    self.wrong.append((source.name, prompt))

    def _generate(self, one: Request, _: int) -> tuple[list[int], bool]:
        return tokens(self.engine, one), True

    def _stream(self, one: Request, _: int) -> tuple[list[int], bool]:
        outputs = list(self.engine.stream(one))
        assert [output.finish_reason for output in outputs] == [None] * 7 + ["length"], "it ends once"
        return [output.token_id for output in outputs], True

    def _abort(self, one: Request, after: int) -> tuple[list[int], bool]:
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
    """Reads the statistics all the time, as a dashboard would."""

    def __init__(self, engine: BatchingEngine) -> None:
        self._engine, self._ended = engine, threading.Event()
        self.maximum: Counter[str] = Counter()
        self.samples = 0

    def watch(self) -> None:
        while not self._ended.wait(0.002):
            stats = self._engine.stats()
            self.samples += 1
            for name in ("running", "waiting", "resident", "slot_users", "host_adapters", "kv_bytes"):
                self.maximum[name] = max(self.maximum[name], getattr(stats, name))

    def end(self) -> None:
        self._ended.set()


def load(engine: BatchingEngine, sources: list[StoredLoraRequest], requests: int, threads: int) -> None:
    """Runs requests from many threads; checks every completion, and that nothing is left."""
    keys = [(source, index) for source in sources for index in range(len(PROMPTS))]
    wanted = {
        (source.name, index): tokens(engine, request(PROMPTS[index], source, max_tokens=8))
        for source, index in keys
    }
    assert len({tuple(answer) for answer in wanted.values()}) > 0.9 * len(wanted), (
        "completions differ by adapter"
    )
    before = set(threading.enumerate()) - engine_threads()
    callers, watcher = Callers(engine, wanted), Watcher(engine)
    watching = threading.Thread(target=watcher.watch, daemon=True)
    watching.start()
    share = requests // threads + 1
    in_threads(
        [lambda n=n: callers.ask(n, min(share, requests - n * share), sources) for n in range(threads)],  # type: ignore[misc]
        MAX_SECONDS,
    )
    end = time.monotonic() + 20
    while counts(engine) != NOTHING and time.monotonic() < end:
        time.sleep(0.01)  # the background thread frees what was aborted
    watcher.end()
    watching.join()
    assert callers.wrong == []
    assert callers.ends.total() == requests
    assert len(callers.ends) == 5
    assert counts(engine) == NOTHING
    assert set(threading.enumerate()) - engine_threads() == before
    assert watcher.samples > 10
    assert watcher.maximum["running"] <= LIMITS.max_batch_size
    assert watcher.maximum["resident"] <= LIMITS.max_loras
    assert watcher.maximum["waiting"] <= LIMITS.max_queue
    assert watcher.maximum["host_adapters"] <= LIMITS.max_cpu_loras + LIMITS.max_cpu_loras // 2, (
        "and those that are being loaded"
    )
    assert watcher.maximum["kv_bytes"] <= LIMITS.kv_cache_bytes
    assert engine.stats().host_adapters <= LIMITS.max_cpu_loras


@pytest.mark.parametrize("requests", [500, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_request_ends_once_with_its_own_completion(
    engine: BatchingEngine, sources: list[StoredLoraRequest], requests: int
):
    load(engine, sources, requests=requests, threads=64)


@pytest.mark.slow
def test_so_it_does_row_by_row(base: Path, sources: list[StoredLoraRequest]):
    loaded = load_base(base, quantization=None, device="cpu")
    engine = BatchingEngine(loaded, LIMITS, runner=RowRunner(loaded, max_loras=LIMITS.max_loras))
    load(engine, sources, requests=300, threads=32)
    engine.close()


def test_a_full_queue_refuses_with_a_retryable_error(base: Path, sources: list[StoredLoraRequest]):
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
        one == wanted[index % 4] for index, one in enumerate(got) if not isinstance(one, CapacityError)
    )
    assert counts(engine) == NOTHING
    engine.close()


def test_hot_adapters_do_not_starve_a_cold_one(
    base: Path, sources: list[StoredLoraRequest], monkeypatch: pytest.MonkeyPatch
):
    engine = engine_of(base, EngineLimits(max_loras=2, max_batch_size=8, kv_cache_mib=16))
    max_bypasses, cold = 4 * 8, sources[2]
    order: list[str] = []
    load = PrefixCache.load

    def noting(cache, slot, digest, prompt):  # each sequence asks it once, when it starts
        order.append(digest)
        return load(cache, slot, digest, prompt)

    monkeypatch.setattr(PrefixCache, "load", noting)
    done = threading.Event()

    def hot(source: StoredLoraRequest, length: int) -> None:
        while not done.is_set() and len(order) < 400:
            tokens(engine, request(PROMPTS[0], source, max_tokens=length))

    queued: list[int] = []

    def ask_cold() -> None:
        try:
            while len(order) < 20:
                time.sleep(0.001)
            engine.preload(cold)  # loading is no part of the waiting; no slot is free
            queued.append(len(order))
            tokens(engine, request(PROMPTS[0], cold))
        finally:
            done.set()

    in_threads([ask_cold, *(lambda s=s, n=n: hot(s, n) for s in sources[:2] for n in range(3, 11))], 60)  # type: ignore[misc]
    # At most sixteen hot requests were queued before it.
    assert order.index(cold.digest) - queued[0] <= 16 + max_bypasses
    engine.close()


@pytest.mark.parametrize("distinct", [8, 32, 128])
def test_memory_is_bounded_for_any_number_of_adapters(
    base: Path, sources: list[StoredLoraRequest], distinct: int, tmp_path: Path
):
    limits = EngineLimits(max_loras=8, max_cpu_loras=12, kv_cache_mib=16, max_queue=256)
    loaded, chance = load_base(base, quantization=None, device="cpu"), random.Random(0)
    engine = BatchingEngine(loaded, limits)
    # Copies under other digests: memory is counted by digest, and the completion is the original's.
    many = [twin_of(sources[n % ADAPTERS], tmp_path / f"copy-{n}") for n in range(distinct)]
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
    assert watcher.maximum["resident"] <= 8
    assert watcher.maximum["host_adapters"] <= 12 + 6
    assert stats.loads >= min(distinct, 8)
    assert (stats.evictions == 0) == (distinct == 8)
    one = max(size_of(loaded, source) for source in sources[:4])
    assert stats.host_bytes <= 12 * 2 * one
    assert counts(engine) == NOTHING
    engine.close()


def size_of(base: Base, source: StoredLoraRequest) -> int:
    assert source.folder
    shapes = load_base(
        base.folder, quantization=None, device="cpu"
    ).linear_layers  # not those of wrapped layers
    return sum(
        delta.bytes
        for delta in load_folder_deltas(source.folder, base.model, shapes, dtype=torch.float32).values()
    )


def test_stats_can_be_read_while_layers_are_wrapped(
    base: Path, sources: list[StoredLoraRequest], monkeypatch: pytest.MonkeyPatch
):
    """The first adapters are loaded meanwhile, by another thread."""
    runner = PackedRunner(load_base(base, quantization=None, device="cpu"), max_loras=2)
    zeros = LoraDelta(torch.zeros(1, 64), torch.zeros(64, 1))
    names = iter(["model.layers.0.self_attn.o_proj"])
    runner.load_adapter(0, {"model.layers.0.self_attn.q_proj": zeros})
    assert runner.adapter_bytes > 0

    def meanwhile(_: StackedLoraWeights) -> int:
        for name in names:
            runner.load_adapter(1, {name: zeros})
        return 1

    monkeypatch.setattr(StackedLoraWeights, "bytes", property(meanwhile))
    assert runner.adapter_bytes == 1
    assert runner.adapter_bytes == 2
