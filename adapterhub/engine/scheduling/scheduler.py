"""Which answers run, and what each step computes: waiting, starting, stepping, ending.

    add -> waiting queue -> start: a slot with the adapter, a lane for the keys and values -> steps -> pieces

Every running answer gets one token a step, and what room is left goes to prompts that have yet to be read.

What can fail fails alone. An adapter that cannot be read ends its own requests; an answer that cannot be computed
ends itself: a step that fails is run again in halves, until what fails is one answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch

from adapterhub.base.loading import Base
from adapterhub.config import EngineLimits
from adapterhub.engine.decoding.sampler import Logits
from adapterhub.engine.interface import LoraRequest
from adapterhub.engine.kv.cache import KVCache
from adapterhub.engine.kv.prefix_cache import PrefixCache
from adapterhub.engine.model_runner import ModelRunner, ScheduledSequence
from adapterhub.engine.scheduling.cpu_adapter_cache import CpuAdapterCache, Deltas
from adapterhub.engine.scheduling.lora_slots import LoraSlotTable
from adapterhub.engine.scheduling.sequence import Job
from adapterhub.engine.scheduling.waiting_queue import WaitingQueue
from adapterhub.engine.stats import EngineStats, Meter
from adapterhub.errors import AdapterHubError, AdapterIncompatibleError, EngineError, GenerationError
from adapterhub.lora.loading import load_adapter_deltas

_LOADING_POLL_SECONDS = 0.05


class Scheduler:
    """Runs the steps of one base. One thread at a time may call it; only `stats` may be called beside.

    Args:
        base: From `load_base`.
        limits: How much it may hold.
    """

    def __init__(self, base: Base, limits: EngineLimits) -> None:
        self._base = base
        self._limits = limits
        self._shapes = base.linear_shapes
        self._runner = ModelRunner(base, slots=limits.max_loras)
        kv_tokens = limits.kv_cache_bytes // self._runner.kv_shape.bytes_per_token
        self._lanes = KVCache(self._runner.kv_shape, kv_tokens - kv_tokens // 4)
        self._prefixes = PrefixCache(self._lanes, kv_tokens // 4)
        self._slots = LoraSlotTable(limits.max_loras)
        self._host: CpuAdapterCache[LoraRequest] = CpuAdapterCache(
            self._load,
            lambda adapter: adapter.digest,
            max_adapters=limits.max_cpu_loras,
            max_bytes=limits.adapter_cache_bytes,
        )
        self._waiting: WaitingQueue[Job] = WaitingQueue(patience=4 * limits.max_batch_size)
        self._next: dict[str, LoraRequest] = {}  # by digest: adapters that are about to be needed
        self._running: list[Job] = []
        self._unloading: dict[str, None] = {}
        self._meter = Meter()
        # The first forward may re-order 4-bit weights (see `models.py`), which reading an adapter with DoRA looks at.
        self._weights_settle: AbstractContextManager[object] = threading.Lock()

    @property
    def max_tokens(self) -> int:
        """Most tokens that the lanes together have room for."""
        return self._lanes.max_tokens

    @property
    def jobs(self) -> list[Job]:
        """Every answer that waits or runs."""
        return [*self._waiting, *self._running]

    @property
    def waiting(self) -> int:
        """How many answers have not started."""
        return len(self._waiting)

    @property
    def untidy(self) -> bool:
        """Whether `tidy` has something to do."""
        cancelled = any(job.ticket.cancelled for job in self.jobs)
        return cancelled or any(digest not in self._slots.users_of for digest in list(self._unloading))

    def can_ever_run(self, tokens: int) -> bool:
        """Whether a prompt and answer of this many tokens fit the empty cache."""
        return self._lanes.can_ever_hold(tokens)

    def add(self, jobs: Iterable[Job]) -> None:
        """Puts answers into the waiting queue."""
        for job in jobs:
            self._waiting.push(job, time.monotonic())

    def pin(self, digest: str, pinned: bool) -> None:
        """Keeps an adapter in its slot once it is there, or no longer."""
        self._slots.pin(digest, pinned)

    def unload(self, digest: str) -> None:
        """Forgets an adapter at the next `tidy` that finds no answer with it."""
        self._unloading[digest] = None

    def stats(self, submitted: int) -> EngineStats:
        """What is done and held now; `submitted` answers have not been added yet."""
        return self._meter.stats(
            running=len(self._running),
            waiting=len(self._waiting) + submitted,
            slots=self._slots,
            max_loras=self._limits.max_loras,
            host=self._host,
            lanes=self._lanes,
            prefixes=self._prefixes,
            adapter_bytes=self._runner.layers.bytes,
        )

    def tidy(self) -> None:
        """Ends what was cancelled, and forgets what is to be forgotten."""
        self._waiting.discard(lambda job: job.ticket.cancelled)
        for job in [job for job in self._running if job.ticket.cancelled]:
            self._stop(job, clean=False)
        for digest in [digest for digest in list(self._unloading) if digest not in self._slots.users_of]:
            self._forget(digest)

    def step(self) -> None:
        """Starts what can start and runs one step, or waits a little if there is only something to wait for."""
        self._prefetch()
        room = self._limits.max_batch_size - len(self._running)
        if room > 0 and len(self._waiting):
            self._waiting.start(time.monotonic(), room, self._try_start)
        if self._running:
            self._advance(self._compose())
        elif len(self._waiting):
            self._host.wait(_LOADING_POLL_SECONDS)

    def end_all(self, reason: str, hint: str) -> None:
        """Ends every answer with an `EngineError`."""
        for job in self._waiting.discard(lambda _: True):
            job.ticket.put(EngineError(reason, hint=hint))
        for job in list(self._running):
            self._stop(job, clean=False)
            job.ticket.put(EngineError(reason, hint=hint))

    def close(self) -> None:
        """Ends the reading of adapters and forgets prompts; every answer must have ended."""
        self._host.close()
        self._prefixes.clear()

    # Starting

    def _prefetch(self) -> None:
        """Has the adapters of the next requests read; not of all of them, or they would push each other out."""
        self._next.clear()
        for job in self._waiting:
            if len(self._next) >= max(1, self._limits.max_cpu_loras // 2):
                break
            if job.adapter and self._slots.slot_of(job.digest) is None:
                self._next[job.digest] = job.adapter
        for adapter in self._next.values():
            self._host.prefetch(adapter, keep=self._next)

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
            self._prefixes.fill(lane, job.digest, job.row.prompt)
            slot = self._occupy(job, deltas)
        except BaseException:
            self._lanes.give_back(lane)
            raise
        job.start(lane, slot)
        self._running.append(job)
        return True

    def _deltas(self, job: Job) -> Deltas | None:
        """What a job's adapter changes, nothing for the bare base; None while it is being read."""
        if job.adapter is None or self._slots.slot_of(job.digest) is not None:
            return {}
        return self._host.take(job.adapter, keep=self._next)

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

    def _compose(self) -> list[tuple[Job, ScheduledSequence]]:
        """What each running job contributes to the next step, within the limit of tokens."""
        room = self._limits.max_num_batched_tokens
        step = []
        for job in sorted(self._running, key=lambda job: job.reading):  # those that decode come first
            if room < 1:
                break
            tokens, (lane, slot) = job.next_tokens(room), job.held
            room -= len(tokens)
            complete = lane.length + len(tokens) >= len(job.row.prompt)
            step.append((job, ScheduledSequence(lane, tokens, slot, wanted=complete)))
        return step

    def _advance(self, step: list[tuple[Job, ScheduledSequence]]) -> None:
        """Runs a step; one that fails is run again in halves, until what fails is one answer alone."""
        reading = {id(job) for job, _ in step if job.reading}
        started = time.perf_counter()
        try:
            with self._weights_settle:
                logits = self._runner.step([row for _, row in step])
            self._weights_settle = nullcontext()
        except Exception as error:  # noqa: BLE001  out of memory, most likely; serving goes on
            logits = None
            if len(step) == 1:
                self._fail(step[0][0], error)
        if logits is None:
            # Not in the handler, which keeps what the failed pass has allocated.
            if len(step) > 1:
                self._advance(step[: len(step) // 2])
                self._advance(step[len(step) // 2 :])
            return
        wanted = [job for job, row in step if row.wanted]
        for job, own in zip(wanted, Logits.of(logits), strict=True):
            self._accept(job, own, first=id(job) in reading)
        self._meter.step(len(wanted), time.perf_counter() - started)

    def _accept(self, job: Job, logits: Logits, *, first: bool) -> None:
        try:
            piece = job.row.accept(logits)
            if first:
                self._prefixes.keep(job.held[0], job.digest, job.row.prompt)
        except Exception as error:  # noqa: BLE001  one answer's trouble is not its neighbours'
            self._fail(job, error)
            return
        if job.row.finished:
            self._stop(job)
        job.ticket.put(piece)

    # Ending

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

    def _forget(self, digest: str) -> None:
        del self._unloading[digest]
        slot = self._slots.forget(digest)
        if slot is not None:
            self._runner.layers.clear(slot)
        self._host.forget(digest)
        self._prefixes.forget(digest)

    def _load(self, adapter: LoraRequest) -> Deltas:
        model, dtype = self._base.model, self._base.compute_dtype
        with self._weights_settle:
            deltas = load_adapter_deltas(adapter, model, self._shapes, dtype=dtype)
        rank = max((delta.a.shape[0] for delta in deltas.values()), default=0)
        if rank > self._limits.max_lora_rank:
            raise AdapterIncompatibleError(
                f"Its rank is {rank}, and the engine serves ranks up to {self._limits.max_lora_rank}.",
                hint="Raise max_lora_rank, or bring it to a lower rank with a blend of one.",
            )
        return deltas


def _as_adapterhub_error(error: Exception, adapter: LoraRequest | None) -> AdapterHubError:
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
