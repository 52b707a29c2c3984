"""What an engine counts: everything adds up, by adapter too, and times follow each other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as PrometheusHistogram

from adapterhub import EchoEngine
from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine import EngineStats
from adapterhub.engine.histogram import LATENCY_BUCKETS, HistogramRecorder
from adapterhub.engine.meter import MAX_ADAPTERS, Meter, Residency, SequenceTimes
from adapterhub.errors import CapacityError, GenerationError, InvalidRequestError, RequestTooLongError
from adapterhub.lora.request import LoraRequest, StoredLoraRequest
from tests.engine.maker import Seams, answer, prompt_of, request, seams_of, sources_of

LIMITS = EngineLimits(max_batch_size=4, max_loras=2, max_cpu_loras=3, max_queue=12)
NAMES = ("json", "code", "support")


@pytest.fixture
def seams(tiny_base: Path) -> Iterator[Seams]:
    seams = seams_of(load_base(tiny_base, quantization=None, device="cpu"), LIMITS)
    yield seams
    seams.engine.close()


@pytest.fixture
def sources(tiny_adapters: dict[str, Path]) -> dict[str, StoredLoraRequest]:
    return sources_of(tiny_adapters)


@given(st.lists(st.floats(0, 10_000), max_size=50))
def test_a_histogram_counts_as_prometheus_does(values: list[float]):
    registry = CollectorRegistry()
    theirs = PrometheusHistogram("h", "h", buckets=LATENCY_BUCKETS, registry=registry)
    ours = HistogramRecorder(LATENCY_BUCKETS)
    for value in [*values, 0.3, 7680.0]:
        ours.observe(value)
        theirs.observe(value)
    snapshot = ours.snapshot()
    assert snapshot.count == len(values) + 2 == registry.get_sample_value("h_count")
    assert snapshot.sum == pytest.approx(registry.get_sample_value("h_sum"))
    for index, bound in enumerate(LATENCY_BUCKETS):
        assert sum(snapshot.counts[: index + 1]) == registry.get_sample_value("h_bucket", {"le": str(bound)})


def test_everything_adds_up(seams: Seams, sources: dict[str, StoredLoraRequest]):
    engine = seams.engine
    one = request(prompt_of(1, 40), sources["json"], n=2)
    engine.generate([one, request(prompt_of(2, 6), sources["code"], max_tokens=3), request(prompt_of(3, 5))])
    with pytest.raises(RequestTooLongError):
        engine.generate([request(prompt_of(1, 5), max_tokens=10**6, n=2)])
    with pytest.raises(InvalidRequestError):
        engine.generate([request([])])

    def breaks(_: object) -> None:
        raise ValueError("broken")

    seams.runner.before_step = breaks
    with pytest.raises(GenerationError):
        engine.generate([request(prompt_of(4, 5), sources["code"])])
    seams.runner.before_step = lambda _: None
    stream = engine.stream(request(prompt_of(5, 5), sources["json"]))
    next(stream)
    assert engine.stats().adapters["json"].running == 1
    stream.close()

    stats = engine.stats()
    assert stats.finished == {"stop": 0, "length": 4, "abort": 1, "error": 1}
    assert stats.rejected == {"context_length_exceeded": 2, "invalid_value": 1}
    assert (stats.submitted, stats.running, stats.waiting) == (6, 0, 0)
    assert stats.tokens == 2 * 12 + 3 + 12 + 1
    assert stats.prompt_tokens == 2 * 40 + 6 + 5 + 5
    assert stats.prefix_cache_query_tokens == stats.prompt_tokens + 5  # that of the step which failed
    assert stats.prefix_cache_hit_tokens == 32
    by_name = stats.adapters
    assert by_name.keys() == {"json", "code", "base"}
    assert (by_name["json"].prompt_tokens, by_name["json"].tokens) == (2 * 40 + 5, 2 * 12 + 1)
    assert by_name["json"].finished == {"length": 2, "abort": 1}
    assert by_name["code"].finished == {"length": 1, "error": 1}
    assert sum(one.tokens for one in by_name.values()) == stats.tokens
    assert sum(one.prompt_tokens for one in by_name.values()) == stats.prompt_tokens


def test_the_histograms_have_each_token_and_each_answer(seams: Seams):
    seams.engine.generate([request(prompt_of(number, 5 + number), n=2) for number in range(3)])
    histograms = seams.engine.stats().histograms
    assert histograms["time_to_first_token_seconds"].count == 6
    assert histograms["inter_token_latency_seconds"].count == 6 * 11
    lengths = histograms["request_prompt_tokens"]
    assert (lengths.count, lengths.sum) == (6, 2 * (5 + 6 + 7))
    assert lengths.counts[:4] == (0, 0, 2, 4), "up to 1, 2, 5 and 10"
    assert histograms["request_generation_tokens"].sum == 6 * 12
    times = [histograms[f"request_{part}_time_seconds"].sum for part in ("queue", "prefill", "decode")]
    assert min(times) > 0
    assert sum(times) == pytest.approx(histograms["e2e_request_latency_seconds"].sum)


def test_a_completion_knows_its_times(seams: Seams):
    timings = answer(seams.engine, request(prompt_of(1, 9))).timings
    assert timings is not None
    assert min(timings.queue_seconds, timings.prefill_seconds, timings.decode_seconds) > 0
    assert timings.time_to_first_token == timings.queue_seconds + timings.prefill_seconds
    assert timings.total_seconds == timings.time_to_first_token + timings.decode_seconds
    histograms = seams.engine.stats().histograms
    assert histograms["e2e_request_latency_seconds"].sum == pytest.approx(timings.total_seconds)
    assert histograms["time_to_first_token_seconds"].sum == pytest.approx(timings.time_to_first_token)
    assert histograms["inter_token_latency_seconds"].sum == pytest.approx(timings.decode_seconds)


def test_a_request_that_waits_for_others_has_its_time_in_the_queue(seams: Seams):
    batch = [request(prompt_of(number, 5)) for number in range(5)]  # one more than run at a time
    *_, last = [completions[0].timings for completions in seams.engine.generate(batch)]
    assert last is not None
    assert last.queue_seconds > last.prefill_seconds


def test_where_adapters_are(seams: Seams, sources: dict[str, StoredLoraRequest]):
    engine = seams.engine
    engine.pin(sources["support"])
    for name in NAMES:
        engine.preload(sources[name])
    found = engine.stats().adapters
    where = {name: (one.in_slot, one.in_host_memory, one.pinned) for name, one in found.items()}
    assert where == {
        "json": (True, True, False),
        "code": (True, True, False),
        "support": (False, True, True),
    }
    engine.unload(sources["json"])
    json = engine.stats().adapters["json"]
    assert (json.in_slot, json.in_host_memory) == (False, False)


def test_the_kv_cache_is_used_while_sequences_run(seams: Seams):
    engine, seen = seams.engine, []
    seams.runner.before_step = lambda _: seen.append(engine.stats().kv_cache_usage)
    engine.generate([request(prompt_of(number, 60)) for number in range(2)])
    assert 0 < seen[0] <= seen[-2] <= 1
    assert seen[-1] >= seen[0]
    assert engine.stats().kv_cache_usage == 0


async def test_waiting_sequences_are_counted_by_adapter(seams: Seams, sources: dict[str, StoredLoraRequest]):
    engine, seen = seams.engine, []
    seams.runner.before_step = lambda _: seen.append(engine.stats())
    batch = [request(prompt_of(number, 5), sources["json"]) for number in range(6)]
    await engine.agenerate([*batch, request(prompt_of(9, 5), sources["code"])])
    full = seen[1]
    assert (full.running, full.waiting) == (4, 3)
    assert (full.adapters["json"].running, full.adapters["json"].waiting) == (4, 2)
    assert full.adapters["code"].waiting == 1
    assert full.submitted == 7
    with pytest.raises(CapacityError):
        await asyncio.gather(*(engine.agenerate([request(prompt_of(1, 5), n=9)]) for _ in range(2)))
    assert engine.stats().rejected == {"rate_limit_exceeded": 9}


def test_the_number_of_adapters_with_counts_of_their_own_is_bounded():
    class Sequence:
        prompt_token_ids, output_token_ids = (1, 2), (3,)

        def __init__(self, name: str) -> None:
            self.adapter, self.times = LoraRequest(name, f"sha256:{name}"), SequenceTimes()

    meter, sequences = Meter(), [Sequence(f"a{number}") for number in range(MAX_ADAPTERS + 5)]
    for sequence in sequences:
        meter.submit(sequence)
        sequence.times.token()
        meter.token(sequence)
    meter.end(sequences[0], "stop")  # its counts were dropped: they begin again
    meter.end(sequences[0], "abort")
    stats = EngineStats(**meter.figures((), (), 0, Residency()))
    assert len(stats.adapters) == MAX_ADAPTERS
    assert stats.tokens == len(sequences)
    assert stats.adapters["a0"].finished == {"stop": 1}
    assert stats.finished == {"stop": 1, "length": 0, "abort": 0, "error": 0}


def test_the_echo_engine_counts_too():
    async def main() -> EngineStats:
        engine = EchoEngine()
        prompt = engine.tokenizer.encode("Hi")
        await engine.agenerate([request(prompt, LoraRequest("json", "sha256:0"), max_tokens=4, n=2)])
        stream = engine.astream(request(prompt))
        await anext(stream)
        assert engine.stats().running == 1
        await stream.aclose()
        return engine.stats()

    stats = asyncio.run(main())
    assert (stats.submitted, stats.running, stats.tokens) == (3, 0, 9)
    assert stats.finished == {"stop": 0, "length": 2, "abort": 1, "error": 0}
    assert stats.adapters["json"].tokens == 8
    assert stats.histograms["request_generation_tokens"].count == 2
