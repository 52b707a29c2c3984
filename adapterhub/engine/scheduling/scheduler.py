"""Which sequences run, and what each step computes.

    add -> waiting queue -> start: a LoRA slot and a KV slot -> steps -> token outputs

Each step decodes one token of every running sequence; what is left of `max_num_batched_tokens` goes to prefill.

Failures are isolated. An adapter that cannot be loaded ends its own requests. A step that fails is run again in halves,
until what fails is one sequence alone, which ends. An interrupt, such as Ctrl-C, ends at most the sequence that is
being handled, and is passed on to the thread that steps.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

import torch

from adapterhub.config import EngineLimits
from adapterhub.engine.decoding.sampler import Logits, StepLogits
from adapterhub.engine.interface import LoraRequest
from adapterhub.engine.meter import Meter, Residency
from adapterhub.engine.runner import AheadRunner, Runner, ScheduledSequence
from adapterhub.engine.scheduling.cpu_adapter_cache import CpuAdapterCache, Deltas
from adapterhub.engine.scheduling.lora_slots import LoraSlotTable
from adapterhub.engine.scheduling.sequence import SequenceState
from adapterhub.engine.scheduling.waiting_queue import WaitingQueue
from adapterhub.engine.stats import EngineStats
from adapterhub.errors import (
    AdapterHubError,
    EngineClosedError,
    EngineError,
    GenerationError,
    is_interrupt,
)
from adapterhub.lora.delta import unstacked_bytes
from adapterhub.lora.request import BlendedLoraRequest

AdapterLoader = Callable[[LoraRequest], Deltas]
"""Loads an adapter from disk: module name -> weights. It is called in the loading thread."""

_LOAD_POLL_SECONDS = 0.05
_MAX_PROMPT_LOGITS = 256
"""Most tokens of prompts in a step whose logits are needed: each takes the width of the vocabulary."""


@dataclass(frozen=True)
class _QueuedStep:
    """A step that the device computes, or has computed, and whose tokens have not been sampled.

    Attributes:
        scheduled: The sequences, and what each contributes.
        logits: Those to sample from, of the sequences that need them.
        prompt_logits: Those of prompts, by the `id` of their sequence.
        prefilling: The `id` of the sequences whose prompt was not computed before.
        started: When it was queued.
    """

    scheduled: Sequence[tuple[SequenceState, ScheduledSequence]]
    logits: StepLogits
    prompt_logits: Mapping[int, torch.Tensor]
    prefilling: frozenset[int]
    started: float


class Scheduler:
    """Runs sequences on a `Runner`.

    Not thread-safe: only the thread that steps calls its methods. Any thread may read `max_tokens`, `num_waiting`,
    `sequences` and `has_pending`, and call `can_ever_fit` and `stats`.

    Args:
        limits: Maximum sizes.
        runner: What runs the forward passes.
        load_adapter: What loads adapters.
        async_scheduling: While the device computes a step, sample the tokens of the one before, where the runner can.
    """

    def __init__(
        self,
        limits: EngineLimits,
        runner: Runner,
        load_adapter: AdapterLoader,
        *,
        async_scheduling: bool = False,
    ) -> None:
        self._limits = limits
        self._runner = runner
        self._load_adapter = load_adapter
        self._kv_cache, self._prefix_cache = runner.make_caches(limits.kv_cache_bytes)
        self._lora_slots = LoraSlotTable(limits.max_loras, limits.slot_weights_bytes)
        self._cpu_cache: CpuAdapterCache[LoraRequest] = CpuAdapterCache(
            self._load,
            lambda adapter: adapter.digest,
            max_adapters=limits.max_cpu_loras,
            max_bytes=limits.adapter_cache_bytes,
        )
        self._waiting: WaitingQueue[SequenceState] = WaitingQueue(max_bypasses=4 * limits.max_batch_size)
        self._running: list[SequenceState] = []
        self._preloads: list[tuple[LoraRequest, Future[None]]] = []
        self._needed_next: dict[str, LoraRequest] = {}  # by digest: adapters to prefetch, and not to evict
        self._unloading: dict[str, None] = {}  # digests, in order
        self._meter = Meter()
        self._ahead_runner = runner if async_scheduling and isinstance(runner, AheadRunner) else None
        self._queued: _QueuedStep | None = None
        self._last_step_ended = 0.0

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens of a sequence that has all of the KV cache."""
        return self._kv_cache.max_tokens

    @property
    def sequences(self) -> list[SequenceState]:
        """All waiting and running sequences."""
        return [*self._waiting, *self._running]

    @property
    def num_waiting(self) -> int:
        """Number of sequences that have not started."""
        return len(self._waiting)

    @property
    def has_pending(self) -> bool:
        """Whether `reap` has something to do."""
        aborted = any(sequence.output.aborted for sequence in self.sequences)
        return aborted or any(digest not in self._lora_slots.ref_counts for digest in list(self._unloading))

    @property
    def is_consistent(self) -> bool:
        """Whether batch, queue and slots agree; an exception in the middle of a change may have prevented it."""
        waiting, with_lora = list(self._waiting), [one for one in self._running if one.lora_slot is not None]
        queued = {id(sequence) for sequence, _ in self._queued.scheduled} if self._queued else set()
        return (
            self._kv_cache.num_slots == len(self._running)
            and sum(self._lora_slots.ref_counts.values()) == len(with_lora)
            and not any(sequence in waiting or sequence.output.finished for sequence in self._running)
            and all(sequence.is_consistent(id(sequence) in queued) for sequence in self._running)
        )

    def can_ever_fit(self, num_tokens: int) -> bool:
        """Whether a prompt and completion of this many tokens fit the empty KV cache."""
        return self._kv_cache.can_ever_fit(num_tokens)

    def add(self, sequences: Iterable[SequenceState]) -> None:
        """Adds sequences to the waiting queue."""
        for sequence in sequences:
            try:
                self._meter.submit(sequence)
                self._waiting.push(sequence, time.monotonic())
            except Exception as error:  # noqa: BLE001  one sequence's failure must not end the others
                self._fail(sequence, error)

    def pin(self, adapter: LoraRequest, pinned: bool) -> None:
        """Excludes an adapter from eviction once it is in a LoRA slot, or includes it again.

        Raises:
            CapacityError: Every slot would be pinned.
        """
        self._lora_slots.pin(adapter.digest, pinned)
        self._meter.note(adapter)

    def preload(self, adapter: LoraRequest, done: Future[None]) -> None:
        """Loads an adapter during the next steps, and completes a future then."""
        self._meter.note(adapter)
        self._unloading.pop(adapter.digest, None)
        self._preloads.append((adapter, done))

    def unload(self, digest: str) -> None:
        """Removes an adapter at the next `reap` that finds no running sequence with it."""
        self._unloading[digest] = None

    def stats(self, submitted: Sequence[SequenceState]) -> EngineStats:
        """A snapshot; the sequences in `submitted` have not been added yet."""
        slots, host, kv_cache = self._lora_slots, self._cpu_cache, self._kv_cache
        running, waiting = list(self._running), [*self._waiting, *submitted]
        residency = Residency(frozenset(slots.resident), host.loaded, slots.pinned)
        load_seconds = list(host.load_seconds)
        return EngineStats(
            running=len(running),
            waiting=len(waiting),
            max_loras=self._limits.max_loras,
            resident=len(residency.slots),
            slot_users=sum(slots.ref_counts.values()),
            hits=slots.hits,
            loads=slots.loads,
            evictions=slots.evictions,
            host_adapters=host.num_adapters,
            load_seconds=statistics.median(load_seconds) if load_seconds else 0.0,
            adapter_bytes=self._runner.adapter_bytes,
            host_bytes=host.bytes,
            kv_slots=kv_cache.num_slots,
            kv_cache_usage=kv_cache.usage,
            kv_max_tokens=kv_cache.max_tokens,
            kv_tokens=kv_cache.allocated_tokens,
            kv_bytes=kv_cache.bytes,
            prefix_cache_tokens=self._prefix_cache.num_tokens,
            prefix_cache_hit_tokens=self._prefix_cache.hit_tokens,
            **self._meter.figures(running, waiting, len(submitted), residency),
        )

    def reap(self) -> None:
        """Frees aborted sequences and removes adapters that are to be unloaded."""
        for sequence in self._waiting.remove_if(lambda sequence: sequence.output.aborted):
            self._meter.end(sequence, "abort")
        for sequence in [sequence for sequence in self._running if sequence.output.aborted]:
            self._free(sequence, zero=True)
            self._meter.end(sequence, "abort")
        unused = [digest for digest in self._unloading if digest not in self._lora_slots.ref_counts]
        for digest in unused:
            self._remove_adapter(digest)

    def step(self) -> None:
        """Starts sequences and runs one step; if all of them wait for adapters, waits a little."""
        self._prefetch()
        self._finish_preloads()
        room = self._limits.max_batch_size - len(self._running)
        if room > 0 and len(self._waiting):
            self._waiting.schedule(time.monotonic(), room, self._try_start)
        if self._queued:
            queued, self._queued = self._queued, None
            self._finish(queued)
        elif self._running:
            self._execute(self._schedule_tokens())
        elif len(self._waiting) or self._preloads:
            self._cpu_cache.wait_for_load(_LOAD_POLL_SECONDS)

    def fail_all(self, error: type[EngineError], message: str, hint: str) -> None:
        """Ends all sequences and preloads with an error."""
        sequences = [*self._waiting.remove_if(lambda _: True), *self._running]
        preloads = [done for _, done in self._preloads]
        self._running, self._preloads, self._queued = [], [], None
        try:
            self._clear_slots()
        finally:
            for sequence in sequences:
                self._meter.end(sequence, "error")
                sequence.output.put(error(message, hint=hint))
            for done in preloads:
                done.set_exception(error(message, hint=hint))

    def close(self) -> None:
        """Ends all sequences and the loading thread, and empties the caches in host memory; may be called twice."""
        self.fail_all(EngineClosedError, "The engine was closed.", hint="Make a new hub.")
        self._cpu_cache.close()
        self._prefix_cache.clear()

    def _clear_slots(self) -> None:
        # All, and not those of each sequence: an interrupted change may have left others, or one without weights.
        self._kv_cache.clear()
        self._lora_slots.release_all()
        for digest in self._lora_slots.resident:
            with suppress(
                Exception
            ):  # of a lost device; what is left in a slot is cleared when it is loaded again
                self._remove_from_slot(digest)

    # Adapters

    def _load(self, adapter: LoraRequest) -> Deltas:
        deltas = self._load_adapter(adapter)
        rank = max((delta.rank for delta in deltas.values()), default=0)
        self._limits.check_rank(rank, blend=isinstance(adapter, BlendedLoraRequest))
        self._limits.check_slot_weights(unstacked_bytes(deltas))
        return deltas

    def _prefetch(self) -> None:
        """Starts to load the adapters that are needed next; more of them would evict each other."""
        self._needed_next.clear()
        preloads = (adapter for adapter, _ in self._preloads)
        waiting = (sequence.adapter for sequence in self._waiting)
        for adapters in (preloads, waiting):
            for adapter in adapters:
                if len(self._needed_next) >= max(1, self._limits.max_cpu_loras // 2):
                    break
                if adapter and self._lora_slots.slot_of(adapter.digest) is None:
                    self._needed_next[adapter.digest] = adapter
        for adapter in self._needed_next.values():
            self._cpu_cache.prefetch(adapter, protected=self._needed_next)

    def _finish_preloads(self) -> None:
        for preload in list(self._preloads):
            adapter, done = preload
            try:
                if not self._try_preload(adapter):
                    continue
            except BaseException as error:
                if is_interrupt(error):
                    raise
                self._preloads.remove(preload)
                done.set_exception(_as_adapterhub_error(error, adapter))
            else:
                self._preloads.remove(preload)
                done.set_result(None)

    def _try_preload(self, adapter: LoraRequest) -> bool:
        """Whether an adapter is as near as it can be: in a LoRA slot, or in host memory with no slot free."""
        deltas = self._deltas(adapter)
        if deltas is None:
            return False
        slots = self._lora_slots
        has_room = slots.has_free and slots.has_room(unstacked_bytes(deltas))
        if slots.slot_of(adapter.digest) is None and has_room:
            self._acquire_slot(adapter, deltas)
            self._lora_slots.release(adapter.digest)
        return True

    def _deltas(self, adapter: LoraRequest | None) -> Deltas | None:
        """The weights to put into a LoRA slot: none if it is in one, or for the base; None until they are loaded."""
        if adapter is None or self._lora_slots.slot_of(adapter.digest) is not None:
            return {}
        return self._cpu_cache.get(adapter, protected=self._needed_next)

    def _acquire_slot(self, adapter: LoraRequest | None, deltas: Deltas) -> int | None:
        if adapter is None:
            return None
        size = unstacked_bytes(deltas)
        for evicted in self._lora_slots.make_room(size):
            self._runner.clear_adapter(evicted)
        slot, is_new = self._lora_slots.acquire(adapter.digest, size)
        if is_new:
            try:
                self._runner.load_adapter(slot, deltas)
            except BaseException:
                self._lora_slots.release(adapter.digest)
                self._remove_from_slot(adapter.digest)
                raise
        return slot

    def _remove_from_slot(self, digest: str) -> None:
        slot = self._lora_slots.remove(
            digest
        )  # first, so that no request finds an adapter that is half cleared
        if slot is not None:
            self._runner.clear_adapter(slot)

    def _remove_adapter(self, digest: str) -> None:
        del self._unloading[digest]
        self._remove_from_slot(digest)
        self._cpu_cache.remove(digest)
        self._prefix_cache.remove(digest)

    # Starting sequences

    def _try_start(self, sequence: SequenceState) -> bool | None:
        """Starts a sequence; see `WaitingQueue.schedule`."""
        first = sequence.first
        if first and first.prefilling and not first.output.finished:
            return None
        try:
            return self._start(sequence)
        except BaseException as error:
            if is_interrupt(error):
                raise
            self._fail(sequence, error)
            return True  # it has ended, so it leaves the queue

    def _start(self, sequence: SequenceState) -> bool | None:
        deltas = self._deltas(sequence.adapter)
        if deltas is None:
            return None
        if sequence.adapter and not self._lora_slots.can_acquire(sequence.digest, unstacked_bytes(deltas)):
            return False
        kv_slot = self._kv_cache.allocate(sequence.max_length)
        if kv_slot is None:
            return False
        try:
            if not sequence.scores_prompt:  # which needs the logits of all of it
                self._prefix_cache.load(kv_slot, sequence.digest, sequence.prompt_token_ids)
            lora_slot = self._acquire_slot(sequence.adapter, deltas)
        except BaseException:
            self._kv_cache.free(kv_slot)
            raise
        sequence.start(kv_slot, lora_slot)
        self._meter.start(sequence)
        self._running.append(sequence)
        return True

    # Stepping

    def _schedule_tokens(self) -> list[tuple[SequenceState, ScheduledSequence]]:
        """The tokens of each running sequence in the next step, at most `max_num_batched_tokens`."""
        budget, scored = self._limits.max_num_batched_tokens, 0
        scheduled = []
        for sequence in sorted(self._running, key=lambda one: one.prefilling):  # those that decode come first
            if budget < 1:
                break
            of_prompt = sequence.scores_prompt and sequence.prefilling
            limit = min(budget, _MAX_PROMPT_LOGITS - scored) if of_prompt else budget
            if limit < 1:
                continue
            try:
                one = _next_tokens(sequence, limit)
            except BaseException as error:
                if is_interrupt(error):
                    raise
                self._fail(sequence, error)
                continue
            budget -= len(one.token_ids)
            scored += len(one.token_ids) if one.needs_prompt_logits else 0
            scheduled.append((sequence, one))
        return scheduled

    def _execute(self, scheduled: list[tuple[SequenceState, ScheduledSequence]]) -> None:
        """Runs a step; one that fails is run again in halves, until what fails is one sequence alone."""
        prefilling = frozenset(id(sequence) for sequence, _ in scheduled if sequence.prefilling)
        started, logits, prompt_logits = time.perf_counter(), None, dict[int, torch.Tensor]()
        try:
            logits, prompt_logits = self._compute(scheduled)
        except BaseException as error:
            if is_interrupt(error):
                raise
            if len(scheduled) == 1:
                self._fail(scheduled[0][0], error)
        if logits is not None:
            self._finish(_QueuedStep(scheduled, logits, prompt_logits, prefilling, started))
        # Not in the handler: there the traceback still refers to what the failed pass has allocated.
        elif len(scheduled) > 1:
            self._execute(scheduled[: len(scheduled) // 2])
            self._execute(scheduled[len(scheduled) // 2 :])

    def _compute(
        self, scheduled: Sequence[tuple[SequenceState, ScheduledSequence]]
    ) -> tuple[StepLogits, dict[int, torch.Tensor]]:
        """Runs a forward pass; see `_split`. After an exception every KV slot is as long as before."""
        computed = self._runner.step([one for _, one in scheduled])
        try:
            sampled, of_prompts = _split(computed, scheduled)
            return StepLogits(sampled), of_prompts
        except BaseException:
            self._drop(scheduled)
            raise

    def _finish(self, step: _QueuedStep) -> None:
        """Queues the next step if it can be, and samples the tokens of this one."""
        running = set(map(id, self._running))
        unread = deque((sequence, one) for sequence, one in step.scheduled if one.needs_any_logits)
        try:
            self._queued = self._queue_next(step)
            rows = step.logits.get()
            to_sample = iter(rows)
            while unread:
                sequence, one = unread.popleft()
                row = next(to_sample) if one.needs_logits else None
                if id(sequence) in running:  # else it ended while the step was queued
                    self._read(sequence, row, step)
        finally:
            if unread:  # after an interrupt: the next step computes their logits again
                self._drop(unread)
                self._drop(self._queued.scheduled if self._queued else ())
                self._queued = None
        ended = time.perf_counter()
        self._meter.record(len(rows), ended - max(step.started, self._last_step_ended))
        self._last_step_ended = ended

    def _queue_next(self, step: _QueuedStep) -> _QueuedStep | None:
        """Queues the step after one whose tokens are not known yet; None if it depends on what they are."""
        runner, running = self._ahead_runner, [sequence for sequence, _ in step.scheduled]
        if runner is None or step.prefilling or {*map(id, running)} != {*map(id, self._running)}:
            return None
        if not all(sequence.takes_argmax for sequence in running):
            return None
        rows = [row for row, sequence in enumerate(running) if not sequence.is_at_last_token]
        if not rows:
            return None
        following = [(running[row], _following(running[row])) for row in rows]
        started = time.perf_counter()
        try:
            logits = runner.step_ahead([one for _, one in following], step.logits.argmax, rows)
        except Exception:  # noqa: BLE001  it is computed again when the tokens are known, and fails then
            return None
        return (
            None if logits is None else _QueuedStep(following, StepLogits(logits), {}, frozenset(), started)
        )

    def _drop(self, scheduled: Iterable[tuple[SequenceState, ScheduledSequence]]) -> None:
        """Forgets what a step has computed of sequences that still run."""
        for sequence, one in scheduled:
            if sequence in self._running:
                sequence.kv_slot.length -= len(one.token_ids)

    def _read(self, sequence: SequenceState, logits: Logits | None, step: _QueuedStep) -> None:
        """Takes a sequence's logits of a step: those of its prompt, and those to sample from, if there are any."""
        of_prompt = step.prompt_logits.get(id(sequence))
        try:
            if of_prompt is not None and sequence.scorer:
                sequence.scorer.add(of_prompt)
            if logits is not None:
                self._sample(sequence, logits, prefilled=id(sequence) in step.prefilling)
        except BaseException as error:
            self._fail(sequence, error)
            if is_interrupt(error):
                raise

    def _sample(self, sequence: SequenceState, logits: Logits, *, prefilled: bool) -> None:
        output = sequence.sample(logits)
        self._meter.token(sequence)
        if prefilled:
            self._prefix_cache.store(sequence.kv_slot, sequence.digest, sequence.prompt_token_ids)
        if sequence.finish_reason:
            self._free(sequence)
            self._meter.end(sequence, sequence.finish_reason)
        sequence.output.put(output)

    def _fail(self, sequence: SequenceState, error: BaseException) -> None:
        """Ends a sequence, whether it runs or waits, with an error."""
        try:
            if sequence in self._running:
                self._free(sequence, zero=True)
        finally:
            self._meter.end(sequence, "error")
            sequence.output.put(_as_adapterhub_error(error, sequence.adapter))

    def _free(self, sequence: SequenceState, *, zero: bool = False) -> None:
        """Takes a sequence out of the batch and frees its slots; `zero` if its KV slot may hold NaN."""
        self._running.remove(sequence)
        self._kv_cache.free(sequence.kv_slot, zero=zero)
        if sequence.lora_slot is not None:
            self._lora_slots.release(sequence.digest)


def _next_tokens(sequence: SequenceState, limit: int) -> ScheduledSequence:
    token_ids = sequence.next_token_ids(limit)
    needs_logits = sequence.num_computed_tokens + len(token_ids) >= len(sequence.prompt_token_ids)
    of_prompt = sequence.scores_prompt and sequence.prefilling
    return ScheduledSequence(sequence.kv_slot, token_ids, sequence.lora_slot, needs_logits, of_prompt)


def _split(
    logits: torch.Tensor, scheduled: Sequence[tuple[SequenceState, ScheduledSequence]]
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """The logits of a step that are sampled from, and those of prompts by the `id` of their sequence."""
    if not any(one.needs_prompt_logits for _, one in scheduled):
        return logits, {}
    of_prompts, to_sample = dict[int, torch.Tensor](), []
    rows = torch.split(logits, [len(one.logit_positions) for _, one in scheduled])
    for some, (sequence, one) in zip(rows, scheduled, strict=True):
        end = len(some) - one.needs_logits
        to_sample.append(some[end:])
        if one.needs_prompt_logits:
            of_prompts[id(sequence)] = some[:end]
    return torch.cat(to_sample), of_prompts


def _following(sequence: SequenceState) -> ScheduledSequence:
    """What a sequence contributes to the step after the one that computes its next token."""
    return ScheduledSequence(sequence.kv_slot, (0,), sequence.lora_slot, needs_logits=True)


def _as_adapterhub_error(error: BaseException, adapter: LoraRequest | None) -> AdapterHubError:
    """A new error for each request: one that several threads raise would mix their tracebacks."""
    prefix = f"{adapter.name} cannot be served. " if adapter else ""
    if isinstance(error, GenerationError):
        return GenerationError(error.message, hint=error.hint)
    if isinstance(error, AdapterHubError):
        return type(error)(f"{prefix}{error.message}", hint=error.hint)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return GenerationError("There was not enough memory.", hint="Lower max_batch_size or kv_cache_mib.")
    # Its text, which may quote the prompt or the answer, is the cause's only.
    failed = GenerationError(f"The completion could not be computed ({type(error).__name__}).")
    failed.__cause__ = error
    return failed
