"""Streams in an event loop: all completions side by side, errors at the start, and an abort within a step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import Completion, Request, TokenOutput, TokenStream
from adapterhub.engine.output_format import OutputFormat
from adapterhub.errors import (
    CapacityError,
    EngineClosedError,
    GenerationError,
    InvalidRequestError,
    RequestTooLongError,
)
from tests.engine.maker import NOTHING, Seams, counts, prompt_of, request, seams_of, tokens

SOON = 20.0
CHUNK = 16


@pytest.fixture(scope="module")
def seams(tiny_base: Path) -> Iterator[Seams]:
    limits = EngineLimits(max_batch_size=2, max_queue=8, max_num_batched_tokens=CHUNK, max_loras=2)
    seams = seams_of(load_base(tiny_base, quantization=None, device="cpu"), limits)
    yield seams
    seams.engine.close()


@pytest.fixture
def engine(seams: Seams) -> Iterator[BatchingEngine]:
    yield seams.engine
    seams.runner.before_step = lambda _: None


class Steps:
    """The prompts' lengths and tokens of each step, and a gate that a step may be held at."""

    def __init__(self, seams: Seams) -> None:
        self.seen: list[list[int]] = []
        self._open = threading.Event()
        self._open.set()
        self._inside = threading.Event()
        seams.runner.before_step = self._before

    def _before(self, sequences) -> None:
        self.seen.append([len(one.token_ids) for one in sequences])
        self._inside.set()
        assert self._open.wait(SOON)

    def hold(self) -> None:
        """Has the next step wait."""
        self._inside.clear()
        self._open.clear()

    async def held(self) -> None:
        """Returns once a step waits."""
        assert await asyncio.to_thread(self._inside.wait, SOON)

    def release(self) -> None:
        self._open.set()


async def settled(engine: BatchingEngine) -> None:
    async with asyncio.timeout(SOON):
        while counts(engine) != NOTHING:
            await asyncio.sleep(0.002)


async def completions(stream: TokenStream, count: int) -> list[Completion]:
    received: list[list[TokenOutput]] = [[] for _ in range(count)]
    async for output in stream:
        received[output.index].append(output)
    return [Completion.of(outputs) for outputs in received]


async def read_into(outputs: list[TokenOutput], stream: TokenStream) -> None:
    while some := await stream.get():
        outputs += some


def test_n_completions_come_side_by_side_and_are_those_of_generate(engine: BatchingEngine):
    one = request(prompt_of(1, 9), n=3, temperature=1.0, seed=5, logprobs=2)
    expected = engine.generate([one])[0]
    assert len({completion.token_ids for completion in expected}) > 1
    assert asyncio.run(completions(engine.astream(one), 3)) == expected
    assert counts(engine) == NOTHING


def test_they_interleave(engine: BatchingEngine):
    async def first_ends() -> list[int]:
        return [output.index async for output in engine.astream(request(prompt_of(1, 9), n=2))]

    order = asyncio.run(first_ends())
    assert sorted(order) == [0] * 12 + [1] * 12
    assert order.index(1) < 12, "the second has begun before the first has ended"


def test_start_returns_before_there_is_an_output_and_queues_once(seams: Seams, engine: BatchingEngine):
    steps = Steps(seams)

    async def main() -> list[TokenOutput]:
        steps.hold()
        stream = engine.astream(request(prompt_of(2, 5)))
        await asyncio.wait_for(stream.start(), SOON)
        await stream.start()
        await steps.held()
        assert engine.stats().running == 1
        steps.release()
        return [output async for output in stream]

    outputs = asyncio.run(main())
    assert [output.token_id for output in outputs] == tokens(engine, request(prompt_of(2, 5)))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (request([]), InvalidRequestError),
        (request([10**6]), InvalidRequestError),
        (request(prompt_of(1, 5), max_tokens=10**6), RequestTooLongError),
        (Request(prompt_of(1, 5), output_format=OutputFormat.of(regex="(")), InvalidRequestError),
        (request(prompt_of(1, 5), n=9), InvalidRequestError),  # more than the queue holds
    ],
    ids=["empty", "no token", "too long", "no regex", "too many"],
)
def test_what_is_wrong_with_a_request_is_raised_by_start(engine: BatchingEngine, wrong: Request, error: type):
    stream = engine.astream(wrong)
    with pytest.raises(error):
        asyncio.run(stream.start())
    assert counts(engine) == NOTHING


def test_a_full_queue_is_raised_by_start(seams: Seams, engine: BatchingEngine):
    steps = Steps(seams)

    async def main() -> None:
        steps.hold()
        first = engine.astream(request(prompt_of(1, 5), n=2))
        await first.start()
        await steps.held()
        waiting = engine.astream(request(prompt_of(1, 5), n=7))  # one of the first waits too
        await waiting.start()
        with pytest.raises(CapacityError):
            await engine.astream(request(prompt_of(1, 5))).start()
        await waiting.aclose()
        await first.aclose()
        steps.release()
        await settled(engine)

    asyncio.run(main())


def test_an_aborted_request_that_waits_never_runs(seams: Seams, engine: BatchingEngine):
    steps = Steps(seams)

    async def main() -> None:
        steps.hold()
        running = engine.astream(request(prompt_of(1, 3), n=2))
        await running.start()
        await steps.held()
        queued = engine.astream(request(prompt_of(2, 7)))
        await queued.start()
        await queued.aclose()
        steps.release()
        async for _ in running:
            pass
        assert [output async for output in queued] == []

    asyncio.run(main())
    assert all(7 not in step for step in steps.seen)
    assert counts(engine) == NOTHING


def test_an_abort_in_prefill_ends_it_within_the_step(seams: Seams, engine: BatchingEngine):
    steps = Steps(seams)

    async def main() -> None:
        steps.hold()
        stream = engine.astream(request(prompt_of(3, 5 * CHUNK)))
        await stream.start()
        await steps.held()
        await stream.aclose()
        steps.release()
        await settled(engine)

    asyncio.run(main())
    assert steps.seen == [[CHUNK]]


def test_an_abort_in_mid_stream_ends_it_within_the_step(seams: Seams, engine: BatchingEngine):
    steps = Steps(seams)

    async def main() -> None:
        stream = engine.astream(request(prompt_of(4, 5), max_tokens=100, n=2))
        await anext(stream)
        steps.hold()
        await steps.held()
        before = len(steps.seen)
        await stream.aclose()
        steps.release()
        await settled(engine)
        assert len(steps.seen) == before
        assert await stream.get() == []

    asyncio.run(main())


def test_cancelling_a_reader_aborts_the_request(seams: Seams, engine: BatchingEngine):
    steps = Steps(seams)

    async def main() -> None:
        steps.hold()
        stream = engine.astream(request(prompt_of(5, 5)))
        reader = asyncio.create_task(stream.get())
        await steps.held()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        steps.release()
        await settled(engine)

    asyncio.run(main())
    assert len(steps.seen) == 1


def test_an_abandoned_stream_frees_its_sequence(engine: BatchingEngine):
    async def main() -> None:
        stream = engine.astream(request(prompt_of(5, 5), max_tokens=200))
        await anext(stream)
        del stream
        await settled(engine)

    asyncio.run(main())


def test_a_slow_reader_gets_all_that_has_come(engine: BatchingEngine):
    async def main() -> None:
        stream = engine.astream(request(prompt_of(6, 5), n=2))
        await stream.start()
        async with asyncio.timeout(SOON):
            while engine.stats().running or engine.stats().waiting:
                await asyncio.sleep(0.002)
        assert [output.index for output in await stream.get()] == [0] * 12 + [1] * 12
        assert await stream.get() == []

    asyncio.run(main())


def test_a_completion_that_fails_raises_after_what_it_had(seams: Seams, engine: BatchingEngine):
    def broken(sequences) -> None:
        if sequences[0].kv_slot.length == 9:
            raise ValueError("broken")

    async def main() -> None:
        seams.runner.before_step = broken
        stream = engine.astream(request(prompt_of(7, 5)))
        seen: list[TokenOutput] = []
        with pytest.raises(GenerationError, match=r"ValueError") as failure:
            await read_into(seen, stream)
        assert str(failure.value.__cause__) == "broken"
        assert len(seen) == 5
        assert await stream.get() == []

    asyncio.run(main())
    assert counts(engine) == NOTHING


def test_a_closed_engine_ends_a_stream_with_an_error(tiny_base: Path):
    own = seams_of(load_base(tiny_base, quantization=None, device="cpu"), EngineLimits())
    steps, engine = Steps(own), own.engine

    async def main() -> None:
        steps.hold()
        stream = engine.astream(request(prompt_of(8, 5), max_tokens=200))
        await stream.start()
        await steps.held()
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await asyncio.sleep(0)
        steps.release()
        with pytest.raises(EngineClosedError):
            async for _ in stream:
                pass
        await closing
        with pytest.raises(EngineClosedError):
            await engine.astream(request(prompt_of(8, 5))).start()

    asyncio.run(main())
