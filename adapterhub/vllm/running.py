"""Sequences on their way through the servers: waiting, a lease, tokens, retries. All of it on one event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, suppress
from functools import partial

from adapterhub.engine.interface import LoraRequest
from adapterhub.engine.meter import EndReason, Meter, Residency
from adapterhub.engine.stats import EngineStats
from adapterhub.errors import (
    AdapterHubError,
    CapacityError,
    EngineClosedError,
    EngineError,
    traceback_without_texts,
)
from adapterhub.vllm.chunks import ServedToken, tokens_of
from adapterhub.vllm.fleet import Fleet, Lease
from adapterhub.vllm.sequences import ServedSequence
from adapterhub.vllm.unavailable import ReplicaUnavailableError
from adapterhub.vllm.waiting_line import WaitingLine

MAX_ATTEMPTS = 3
"""How many servers a request is sent to until one of them answers; never another one after its first token."""
_END_SECONDS = 1.0
"""How long the end of a stream is waited for once its answer is complete."""

_log = logging.getLogger(__name__)


class SequenceRunner:
    """Runs sequences on a fleet's servers. `add` and the figures are for any thread, the rest for the event loop.

    Args:
        fleet: The servers.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._line = WaitingLine()
        self._tasks: dict[ServedSequence, asyncio.Task[None]] = {}
        self._meter = Meter()
        self._waiting: dict[ServedSequence, None] = {}
        self._running: dict[ServedSequence, None] = {}
        self._last_token = 0.0
        # Guards the meter, and both of these. Reentrant: the garbage collector may end a stream in its holder's thread.
        self._lock = threading.RLock()

    # Of any thread

    def add(self, sequences: Iterable[ServedSequence]) -> None:
        """Counts sequences as waiting; `start` runs them."""
        with self._lock:
            for sequence in sequences:
                self._waiting[sequence] = None
                self._meter.submit(sequence)

    @property
    def num_waiting(self) -> int:
        """Sequences that no server has yet."""
        return len(self._waiting)

    def stats(self, residency: Residency) -> EngineStats:
        """What runs and has run.

        Args:
            residency: Which adapters the servers have.
        """
        with self._lock:
            running, waiting = list(self._running), list(self._waiting)
            figures = self._meter.figures(running, waiting, 0, residency)
        # vLLM's steps are its own affair; the meter's are tokens.
        return EngineStats(running=len(running), waiting=len(waiting), **figures | {"steps": 0})

    # Of the event loop

    def start(self, sequences: Iterable[ServedSequence]) -> None:
        """Runs sequences that `add` has counted."""
        for sequence in sequences:
            self._tasks[sequence] = task = asyncio.create_task(self._run(sequence))
            # Not in the task: one that is cancelled before its first step runs nothing.
            task.add_done_callback(partial(self._finish, sequence))

    def cancel(self, sequence: ServedSequence) -> None:
        """Ends a sequence, and its completion in the server."""
        if task := self._tasks.get(sequence):
            task.cancel()

    async def preload(self, adapter: LoraRequest) -> None:
        """As `Fleet.preload`."""
        with self._line.turn():
            await self._fleet.preload(adapter)

    async def aclose(self) -> None:
        """Ends all sequences with `EngineClosedError`."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finish(self, sequence: ServedSequence, task: asyncio.Task[None]) -> None:
        del self._tasks[sequence]
        self._end(sequence, "abort" if task.cancelled() else "error")  # of what has no answer
        if task.cancelled():  # nobody reads it if the caller did that
            sequence.output.put(EngineClosedError("The engine was closed.", hint="Make a new hub."))

    async def _run(self, sequence: ServedSequence) -> None:
        try:
            await self._answer(sequence)
        except AdapterHubError as error:
            self._fail(sequence, error)
        except Exception as error:  # noqa: BLE001  a defect; no caller may be left waiting
            _log.error("A request to a vLLM server failed:\n%s", traceback_without_texts(error))
            name = type(error).__name__  # its text might quote the prompt or the answer
            self._fail(sequence, EngineError(f"The request failed ({name}).", hint="Ask again."))

    def _fail(self, sequence: ServedSequence, error: AdapterHubError) -> None:
        self._end(sequence, "error")
        sequence.output.put(error)

    async def _answer(self, sequence: ServedSequence) -> None:
        attempts, retry_after = MAX_ATTEMPTS, None
        while True:
            try:
                await self._answer_in_turn(sequence)
                return
            except ReplicaUnavailableError as error:
                attempts -= 1
                retry_after = error.retry_after = error.retry_after or retry_after
                if sequence.output_token_ids or not attempts:
                    raise

    async def _answer_in_turn(self, sequence: ServedSequence) -> None:
        place = self._line.place(sequence.request.priority)
        if self._line:
            await self._line.wait(place)
        while True:
            try:
                with self._line.turn():
                    async with self._fleet.lease(sequence.adapter) as lease:
                        self._line.wake_next()  # there may be room for more than this one
                        await self._stream(sequence, lease)
                        return
            except CapacityError:
                await self._line.wait(place)

    async def _stream(self, sequence: ServedSequence, lease: Lease) -> None:
        self._begin(sequence)
        sampling = sequence.request.sampling
        async with aclosing(
            lease.client.complete({**sequence.body, "model": lease.model}, sequence.headers)
        ) as frames:
            async for frame in frames:
                lease.check_model(frame.get("model"))
                for token in tokens_of(frame, sampling.logprobs, sampling.prompt_logprobs):
                    if self._take(sequence, token):
                        if token.is_last:  # else closing the connection ends it in the server
                            await _read_to_end(frames)
                        return
        raise ReplicaUnavailableError(
            f"{lease.client.url} ended an answer before its end.", hint="Ask again."
        )

    # Figures

    def _begin(self, sequence: ServedSequence) -> None:
        with self._lock:
            self._waiting.pop(sequence, None)
            if not self._running:
                self._last_token = time.perf_counter()
            self._running[sequence] = None
            if sequence.times.started is None:  # else it is sent again
                self._meter.start(sequence)

    def _take(self, sequence: ServedSequence, token: ServedToken) -> bool:
        """Passes a token on; whether it ends the answer."""
        output = sequence.take(token)
        now = time.perf_counter()
        with self._lock:
            self._meter.token(sequence)
            self._meter.record(1, now - self._last_token)
            self._last_token = now
        if output.finish_reason:
            self._end(sequence, output.finish_reason)
        sequence.output.put(output)
        return output.finish_reason is not None

    def _end(self, sequence: ServedSequence, reason: EndReason) -> None:
        with self._lock:
            self._waiting.pop(sequence, None)
            self._running.pop(sequence, None)
            self._meter.end(sequence, reason)


async def _read_to_end(frames: AsyncIterator[object]) -> None:
    """Reads what follows a complete answer, so that its connection serves the next request."""
    with suppress(AdapterHubError, TimeoutError):  # nobody needs it
        async with asyncio.timeout(_END_SECONDS):
            async for _ in frames:
                pass
