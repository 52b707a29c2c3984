"""The engine: any number of callers, any adapters, one base, one batch.

A step is one forward pass. Every running answer gets one token, and what room is left goes to prompts that have yet to
be read. Answers start, end and are cancelled between steps. Nothing here runs by itself: the threads that wait for
answers run the steps (`turns.py`); a thread of the engine's own does so only for callers that cannot block.

    submit -> waiting queue -> start: a slot with the adapter, a lane for the keys and values -> steps -> pieces

What can fail fails alone. An adapter that cannot be read ends its own requests; a prompt that cannot be computed
ends itself, and the others' step is run again without it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from adapterhub.engine.driver import Driver
from adapterhub.engine.host_cache import Deltas, HostCache
from adapterhub.engine.interface import AdapterSource, Completion, Piece, Request, answer_budget
from adapterhub.engine.job import Job, Ticket
from adapterhub.engine.kv_cache import KVCache
from adapterhub.engine.prefix_cache import PrefixCache
from adapterhub.engine.row import RowMaker
from adapterhub.engine.runner import ModelRunner, StepRow
from adapterhub.engine.slots import SlotTable
from adapterhub.engine.stats import EngineStats, Meter
from adapterhub.engine.turns import Turns, Waiter
from adapterhub.engine.waiting import WaitingQueue
from adapterhub.errors import (
    AdapterHubError,
    AdapterIncompatibleError,
    CapacityError,
    EngineError,
    GenerationError,
    RequestTooLongError,
)
from adapterhub.fingerprint import BaseFingerprint
from adapterhub.limits import EngineLimits
from adapterhub.lora.weights import load_source
from adapterhub.models import Base
from adapterhub.prompts import Tokenizer

_LOADING_POLL_SECONDS = 0.05


class BatchingEngine:
    """Serves a base and its adapters to any number of threads.

    Args:
        base: From `load_base`. The engine wraps its layers and is its only user from then on.
        limits: How much it may hold; see `EngineLimits`.
    """

    def __init__(self, base: Base, limits: EngineLimits | None = None) -> None:
        self._base = base
        self._limits = limits = limits or EngineLimits()
        self._rows = RowMaker(base)
        self._shapes = base.linear_shapes
        self._runner = ModelRunner(base, slots=limits.max_loras)
        kv_tokens = limits.kv_cache_bytes // self._runner.kv_shape.bytes_per_token
        self._lanes = KVCache(self._runner.kv_shape, kv_tokens - kv_tokens // 4)
        self._prefixes = PrefixCache(self._lanes, kv_tokens // 4)
        self._slots = SlotTable(limits.max_loras)
        self._host: HostCache[AdapterSource] = HostCache(
            self._load,
            lambda adapter: adapter.digest,
            max_adapters=limits.max_cpu_loras,
            max_bytes=limits.adapter_cache_bytes,
        )
        self._inbox: list[Job] = []  # submitted, and not yet seen by a step
        self._waiting: WaitingQueue[Job] = WaitingQueue(patience=4 * limits.max_batch_size)
        self._running: list[Job] = []
        self._meter = Meter()
        self._lock = threading.Lock()  # guards the inbox
        self._turns = Turns(self._step, self._tidy, self._is_untidy)
        self._driver = Driver(self._turns)
        self._unloading: dict[str, None] = {}
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

    def stream(self, request: Request) -> Iterator[Piece]:
        """Answers one request piece by piece; see `Engine.stream`."""
        self._check(request)
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

    async def astream(self, request: Request) -> AsyncIterator[Piece]:
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
        self._turns.until(lambda: not self._jobs(), Waiter())
        self._driver.close()
        self._host.close()
        self._prefixes.clear()

    def pin(self, adapter: AdapterSource, pinned: bool = True) -> None:
        """Keeps an adapter in its slot once it is there; see `Engine.pin`."""
        self._slots.pin(adapter.digest, pinned)

    def unload(self, adapter: AdapterSource) -> None:
        """Forgets an adapter once no running answer needs it; see `Engine.unload`."""
        self._unloading[adapter.digest] = None
        self._turns.tidy()

    def stats(self) -> EngineStats:
        """What the engine does and holds now."""
        return self._meter.stats(
            running=len(self._running),
            waiting=len(self._waiting) + len(self._inbox),
            slots=self._slots,
            max_loras=self._limits.max_loras,
            host=self._host,
            lanes=self._lanes,
            prefixes=self._prefixes,
            adapter_bytes=self._runner.layers.bytes,
        )

    # Requests in

    def _pieces(self, request: Request) -> Iterator[Piece]:
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
            if request.structure:
                await asyncio.to_thread(self._rows.compile, request.structure)

    def _submit(
        self, requests: Sequence[Request], wake: Callable[[], None], *, every_piece: bool
    ) -> list[list[Ticket]]:
        """Queues all of the requests or none of them."""
        for request in requests:
            self._check(request)
        jobs = [self._jobs_of(request, wake, every_piece) for request in requests]
        with self._lock:
            if self._closed:
                raise EngineError("The engine is closed.", hint="Make a new hub.")
            new = [job for answers in jobs for job in answers]
            queued = len(self._inbox) + len(self._waiting)
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
            ticket = Ticket(wake, every_piece=every_piece)
            jobs.append(Job(request, self._rows.row(request, number), ticket, first))
        return jobs

    def _check(self, request: Request) -> None:
        """Refuses a request that can never be answered."""
        tokens = len(request.prompt) + answer_budget(request, self.context_length)
        if not self._lanes.can_ever_hold(tokens):
            raise RequestTooLongError(
                f"A prompt and answer of up to {tokens} tokens never fit the {self._lanes.max_tokens} tokens that the "
                "engine has memory for.",
                hint="Shorten the prompt, lower max_tokens, or raise kv_cache_mib.",
            )

    def _cancel(self, tickets: Sequence[Ticket]) -> None:
        unfinished = [ticket for ticket in tickets if not ticket.ended]
        for ticket in unfinished:
            ticket.cancelled = True
        if unfinished:
            self._turns.tidy()

    def _jobs(self) -> list[Job]:
        return [*self._inbox, *self._waiting, *self._running]

    # A step

    def _step(self) -> None:
        """Runs one step, or waits a little if there is only something to wait for."""
        self._tidy()
        self._prefetch()
        room = self._limits.max_batch_size - len(self._running)
        if room > 0 and len(self._waiting):
            self._waiting.start(time.monotonic(), room, self._try_start)
        if self._running:
            self._advance(self._compose())
        elif len(self._waiting):
            self._host.wait(_LOADING_POLL_SECONDS)

    def _is_untidy(self) -> bool:
        cancelled = any(job.ticket.cancelled for job in self._jobs())
        return cancelled or any(digest not in self._slots.users_of for digest in list(self._unloading))

    def _tidy(self) -> None:
        """Takes in what was submitted, and ends what was cancelled or is to be forgotten."""
        with self._lock:
            new, self._inbox = self._inbox, []
        for job in new:
            self._waiting.push(job, time.monotonic())
        if self._closed:
            self._end_all(EngineError("The engine was closed.", hint="Make a new hub."))
        self._waiting.discard(lambda job: job.ticket.cancelled)
        for job in [job for job in self._running if job.ticket.cancelled]:
            self._stop(job, clean=False)
        for digest in [digest for digest in self._unloading if digest not in self._slots.users_of]:
            self._forget(digest)

    def _forget(self, digest: str) -> None:
        del self._unloading[digest]
        slot = self._slots.forget(digest)
        if slot is not None:
            self._runner.layers.clear(slot)
        self._host.forget(digest)
        self._prefixes.forget(digest)

    def _prefetch(self) -> None:
        """Has the adapters of the next requests read; not of all of them, or they would push each other out."""
        wanted = 0
        for job in self._waiting:
            if job.adapter and self._slots.slot_of(job.digest) is None:
                self._host.prefetch(job.adapter)
                wanted += 1
            if wanted >= self._limits.max_cpu_loras // 2:
                return

    def _try_start(self, job: Job) -> bool | None:
        """Gives a job what it needs to run; see `WaitingQueue.start`."""
        if job.first and job.first.reading and not job.first.ticket.ended:
            return None
        try:
            return self._start(job)
        except Exception as error:  # noqa: BLE001  whatever is wrong with this adapter, the others go on
            job.ticket.put(_as_adapterhub_error(error, job.adapter))
            return True  # it has ended, so it leaves the queue

    def _start(self, job: Job) -> bool | None:
        deltas = self._deltas(job)
        if deltas is None:
            return None
        if job.adapter and not self._slots.can_acquire(job.digest):
            return False
        lane = self._lanes.take(job.tokens)
        if lane is None:
            return False
        try:
            slot = self._occupy(job, deltas)
        except BaseException:
            self._lanes.give_back(lane)
            raise
        job.start(lane, slot)
        self._prefixes.fill(lane, job.digest, job.row.prompt)
        self._running.append(job)
        return True

    def _deltas(self, job: Job) -> Deltas | None:
        """What a job's adapter changes, nothing for the bare base; None while it is being read."""
        if job.adapter is None or self._slots.slot_of(job.digest) is not None:
            return {}
        return self._host.take(job.adapter, keep={other.digest for other in self._waiting})

    def _occupy(self, job: Job, deltas: Deltas) -> int | None:
        """The slot that a job's adapter is in from now on."""
        if job.adapter is None:
            return None
        slot, empty = self._slots.acquire(job.digest)
        if empty:
            try:
                self._runner.layers.load(slot, deltas)
            except BaseException:
                self._runner.layers.clear(slot)
                self._slots.release(job.digest)
                self._slots.forget(job.digest)
                raise
        return slot

    def _compose(self) -> list[tuple[Job, StepRow]]:
        """What each running job contributes to the next step, within the limit of tokens."""
        room = self._limits.max_num_batched_tokens
        step = []
        for job in sorted(self._running, key=lambda job: job.reading):  # those that decode come first
            if room < 1:
                break
            tokens, (lane, slot) = job.next_tokens(room), job.held
            room -= len(tokens)
            complete = lane.length + len(tokens) >= len(job.row.prompt)
            step.append((job, StepRow(lane, tokens, slot, wanted=complete)))
        return step

    def _advance(self, step: list[tuple[Job, StepRow]]) -> None:
        reading = {id(job) for job, _ in step if job.reading}
        started = time.perf_counter()
        try:
            logits = self._runner.step([row for _, row in step])
        except Exception as error:  # noqa: BLE001  out of memory, most likely; serving goes on
            # Prompts are what needs much memory at once; without them the others' step may well work.
            for job in [job for job, _ in step if not reading or id(job) in reading]:
                self._fail(job, error)
            return
        drawn = 0
        for (job, _), row in zip(step, logits, strict=True):
            if row is not None:
                drawn += 1
                self._accept(job, row, first=id(job) in reading)
        self._meter.step(drawn, time.perf_counter() - started)

    def _accept(self, job: Job, logits: torch.Tensor, *, first: bool) -> None:
        try:
            piece = job.row.accept(logits)
        except Exception as error:  # noqa: BLE001  one answer's trouble is not its neighbours'
            self._fail(job, error)
            return
        if first:
            self._prefixes.keep(job.held[0], job.digest, job.row.prompt)
        if job.row.finished:
            self._stop(job)
        job.ticket.put(piece)

    # Requests out

    def _fail(self, job: Job, error: Exception) -> None:
        self._stop(job, clean=False)
        job.ticket.put(_as_adapterhub_error(error, job.adapter))

    def _stop(self, job: Job, *, clean: bool = True) -> None:
        """Takes a job out of the batch and frees what it holds."""
        self._running.remove(job)
        lane, slot = job.held
        self._lanes.give_back(lane, clean=clean)
        if slot is not None:
            self._slots.release(job.digest)

    def _end_all(self, error: EngineError) -> None:
        for job in [*self._waiting.discard(lambda _: True), *self._running]:
            if job in self._running:
                self._stop(job, clean=False)
            job.ticket.put(error)

    def _load(self, adapter: AdapterSource) -> Deltas:
        model, dtype = self._base.model, self._base.compute_dtype
        deltas = load_source(adapter, model, self._shapes, dtype=dtype)
        rank = max((delta.a.shape[0] for delta in deltas.values()), default=0)
        if rank > self._limits.max_lora_rank:
            raise AdapterIncompatibleError(
                f"Its rank is {rank}, and the engine serves ranks up to {self._limits.max_lora_rank}.",
                hint="Raise max_lora_rank, or bring it to a lower rank with a blend of one.",
            )
        return deltas


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


def _as_adapterhub_error(error: Exception, adapter: AdapterSource | None) -> AdapterHubError:
    """An error of its own for each request: one that is raised in several threads would mix their tracebacks."""
    who = f"{adapter.name} cannot be served. " if adapter else ""
    if isinstance(error, GenerationError):
        return GenerationError(error.message, hint=error.hint)
    if isinstance(error, AdapterHubError):
        return type(error)(f"{who}{error.message}", hint=error.hint)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return GenerationError("There was not enough memory.", hint="Lower max_batch_size or kv_cache_mib.")
    failed = GenerationError(f"The answer could not be computed: {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed
