"""The engine: any number of callers, any adapters, one base, one batch.

Nothing here runs by itself: the threads that wait for answers run the scheduler's steps (`leader_follower.py`); a
thread of the engine's own does so only for callers that cannot block (`background_loop.py`). Answers come and go
between steps.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.loading import Base
from adapterhub.config import EngineLimits
from adapterhub.engine.interface import Completion, LoraRequest, Request, TokenOutput, answer_budget
from adapterhub.engine.scheduling.background_loop import BackgroundLoop
from adapterhub.engine.scheduling.leader_follower import LeaderFollower, Waiter
from adapterhub.engine.scheduling.row import SequenceBuilder
from adapterhub.engine.scheduling.scheduler import Scheduler
from adapterhub.engine.scheduling.sequence import Job, OutputQueue
from adapterhub.engine.stats import EngineStats
from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.errors import (
    CapacityError,
    EngineError,
    InvalidRequestError,
    RequestTooLongError,
)


class BatchingEngine:
    """Serves a base and its adapters to any number of threads.

    Args:
        base: From `load_base`. The engine wraps its layers and is its only user from then on.
        limits: How much it may hold; see `EngineLimits`.
    """

    def __init__(self, base: Base, limits: EngineLimits | None = None) -> None:
        self._base = base
        self._limits = limits or EngineLimits()
        self._rows = SequenceBuilder(base)
        self._scheduler = Scheduler(base, self._limits)
        self._inbox: list[Job] = []  # submitted, and not yet seen by a step
        self._lock = threading.RLock()  # guards the inbox; reentrant for the reason that `LeaderFollower` has
        self._turns = LeaderFollower(self._step, self._tidy, self._is_untidy)
        self._driver = BackgroundLoop(self._turns)
        self._closed = False

    @property
    def base_name(self) -> str:
        """The name of the base."""
        return self._base.name

    @property
    def fingerprint(self) -> BaseFingerprint:
        """What the base is."""
        return self._base.fingerprint

    @property
    def tokenizer(self) -> Tokenizer:
        """The base's tokenizer."""
        tokenizer: Tokenizer = self._base.tokenizer
        return tokenizer

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self._base.context_length

    # What callers do

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Answers every request; see `Engine.generate`."""
        waiter = Waiter()
        tickets = self._submit(requests, waiter.wake, every_piece=False)
        try:
            for ticket in (ticket for answers in tickets for ticket in answers):
                self._turns.until(lambda ticket=ticket: ticket.ended, waiter)  # type: ignore[misc]
            return [[Completion.of(ticket.take_all()) for ticket in answers] for answers in tickets]
        finally:
            self._cancel([ticket for answers in tickets for ticket in answers])

    def stream(self, request: Request) -> Iterator[TokenOutput]:
        """Answers one request piece by piece; see `Engine.stream`."""
        self._check(request)
        self._rows.row(request, 0)  # refuses a form that cannot be kept now, and not at the first piece
        return self._pieces(request)

    async def agenerate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """As `generate`, without blocking the event loop; see `Engine.agenerate`."""
        await self._compile(requests)
        news = _LoopEvent()
        tickets = self._submit(requests, news.wake, every_piece=False)
        all_tickets = [ticket for answers in tickets for ticket in answers]
        try:
            self._driver.serve(all_tickets)
            for ticket in all_tickets:
                while not ticket.ended:
                    await news.wait()
            return [[Completion.of(ticket.take_all()) for ticket in answers] for answers in tickets]
        finally:
            self._cancel(all_tickets)

    async def astream(self, request: Request) -> AsyncIterator[TokenOutput]:
        """As `stream`, without blocking the event loop; see `Engine.astream`."""
        await self._compile([request])
        news = _LoopEvent()
        ((ticket, *_),) = self._submit([_once(request)], news.wake, every_piece=True)
        try:
            self._driver.serve([ticket])
            finished = False
            while not finished:
                while not ticket.has_news:
                    await news.wait()
                piece = ticket.take()
                finished = piece.finish_reason is not None
                yield piece
        finally:
            self._cancel([ticket])

    def close(self) -> None:
        """Ends every answer with an error and refuses further requests."""
        self._closed = True
        self._turns.until(lambda: not self._inbox and not self._scheduler.jobs, Waiter())
        self._driver.close()
        self._scheduler.close()

    def pin(self, adapter: LoraRequest, pinned: bool = True) -> None:
        """Keeps an adapter in its slot once it is there; see `Engine.pin`."""
        self._scheduler.pin(adapter.digest, pinned)

    def preload(self, adapter: LoraRequest) -> None:
        """Loads an adapter before the first request for it; see `Engine.preload`."""
        # The first request loads it.

    def unload(self, adapter: LoraRequest) -> None:
        """Forgets an adapter once no running answer needs it; see `Engine.unload`."""
        self._scheduler.unload(adapter.digest)
        self._turns.tidy()

    def stats(self) -> EngineStats:
        """What the engine does and holds now."""
        return self._scheduler.stats(submitted=len(self._inbox))

    # Requests in

    def _pieces(self, request: Request) -> Iterator[TokenOutput]:
        waiter = Waiter()
        ((ticket, *_),) = self._submit([_once(request)], waiter.wake, every_piece=True)
        try:
            finished = False
            while not finished:
                self._turns.until(lambda: ticket.has_news, waiter)
                piece = ticket.take()
                finished = piece.finish_reason is not None
                yield piece
        finally:
            self._cancel([ticket])

    async def _compile(self, requests: Sequence[Request]) -> None:
        """Compiles the forms that answers must have, which may take tenths of a second, beside the event loop."""
        for request in requests:
            if request.output_format:
                await asyncio.to_thread(self._rows.compile, request.output_format)

    def _submit(
        self, requests: Sequence[Request], wake: Callable[[], None], *, every_piece: bool
    ) -> list[list[OutputQueue]]:
        """Queues all of the requests or none of them."""
        for request in requests:
            self._check(request)
        jobs = [self._jobs_of(request, wake, every_piece) for request in requests]
        with self._lock:
            if self._closed:
                raise EngineError("The engine is closed.", hint="Make a new hub.")
            new = [job for answers in jobs for job in answers]
            if len(new) > self._limits.max_queue:
                raise InvalidRequestError(
                    f"{len(new)} answers in one call are more than max_queue={self._limits.max_queue} allows.",
                    hint="Ask in several calls, or raise max_queue.",
                )
            queued = len(self._inbox) + self._scheduler.waiting
            if queued + len(new) > self._limits.max_queue:
                raise CapacityError(
                    f"{queued} answers are waiting already, and at most {self._limits.max_queue} may.",
                    hint="Try again when some are done, or raise max_queue.",
                )
            self._inbox += new
        return [[job.ticket for job in answers] for answers in jobs]

    def _jobs_of(self, request: Request, wake: Callable[[], None], every_piece: bool) -> list[Job]:
        jobs: list[Job] = []
        for number in range(request.sampling.n):
            first = jobs[0] if jobs else None
            ticket = OutputQueue(wake, every_piece=every_piece)
            jobs.append(Job(request, self._rows.row(request, number), ticket, first))
        return jobs

    def _check(self, request: Request) -> None:
        """Refuses a request that can never be answered."""
        tokens = len(request.prompt) + answer_budget(request, self.context_length)
        if not self._scheduler.can_ever_run(tokens):
            raise RequestTooLongError(
                f"A prompt and answer of up to {tokens} tokens never fit the {self._scheduler.max_tokens} tokens that "
                "the engine has memory for.",
                hint="Shorten the prompt, lower max_tokens, or raise kv_cache_mib.",
            )

    def _cancel(self, tickets: Sequence[OutputQueue]) -> None:
        unfinished = [ticket for ticket in tickets if not ticket.ended]
        for ticket in unfinished:
            ticket.cancelled = True
        if unfinished:
            self._turns.tidy()

    # A turn

    def _step(self) -> None:
        try:
            self._tidy()
            self._scheduler.step()
        except BaseException:
            # A defect, or Ctrl-C: what has been done cannot be told from what has not, and nobody may be left waiting.
            self._scheduler.end_all("The engine's step was interrupted.", hint="Ask again.")
            raise

    def _is_untidy(self) -> bool:
        return self._scheduler.untidy or any(job.ticket.cancelled for job in list(self._inbox))

    def _tidy(self) -> None:
        with self._lock:
            new, self._inbox = self._inbox, []
        self._scheduler.add(new)
        if self._closed:
            self._scheduler.end_all("The engine was closed.", hint="Make a new hub.")
        self._scheduler.tidy()


class _LoopEvent:
    """An event of the running event loop that any thread may set."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def wake(self) -> None:
        # A loop that has been closed has nobody left who waits.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()


def _once(request: Request) -> Request:
    return replace(request, sampling=request.sampling.model_copy(update={"n": 1}))
