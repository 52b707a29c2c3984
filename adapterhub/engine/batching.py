"""The batching engine: any number of callers, any adapters, one base, one continuous batch.

The threads that wait for output run the scheduler's steps themselves (`leader_follower.py`); a thread of the engine's
own does so only for callers that cannot block (`background_loop.py`). Sequences join and leave the batch between steps.

Calls from other threads reach the scheduler through two queues, which the thread that steps empties before each step:
sequences, and commands such as `pin`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch

from adapterhub.base.copied_weights import check_copied_weights
from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.loading import Base
from adapterhub.config import EngineLimits
from adapterhub.engine.decoding.compile_pool import CompilePool
from adapterhub.engine.generation_config import GenerationConfigSource, default_sampling_params
from adapterhub.engine.interface import Completion, LoraRequest, Request, TokenOutput
from adapterhub.engine.runner import EngineBase, Runner
from adapterhub.engine.runners.batch_invariant import BatchInvariantRunner
from adapterhub.engine.runners.choosing import make_runner
from adapterhub.engine.runners.cuda_graphs import graphs_of
from adapterhub.engine.scheduling.async_stream import AsyncTokenStream
from adapterhub.engine.scheduling.background_loop import BackgroundLoop
from adapterhub.engine.scheduling.leader_follower import LeaderFollower, Waiter
from adapterhub.engine.scheduling.loop_events import LoopEvents
from adapterhub.engine.scheduling.scheduler import AdapterLoader, Scheduler
from adapterhub.engine.scheduling.sequence import SequenceState
from adapterhub.engine.scheduling.sequence_builder import SequenceBuilder
from adapterhub.engine.stats import EngineStats
from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.errors import (
    AdapterHubError,
    CapacityError,
    EngineClosedError,
    EngineError,
    InvalidRequestError,
    RequestTooLongError,
    is_interrupt,
    traceback_without_texts,
)
from adapterhub.lora.delta import LoraDelta, ModuleDelta
from adapterhub.lora.digest_check import DigestCheck
from adapterhub.lora.loading import adapter_rank, load_adapter_deltas, slot_weights
from adapterhub.lora.request import BlendedLoraRequest, fetch_files

_log = logging.getLogger(__name__)


class BatchingEngine:
    """Serves a base and its adapters; see `Engine`. Any thread may call any method.

    Making one runs forward passes; see `make_runner`.

    Args:
        base: From `load_base`. The engine changes its model and owns it from then on. With a `runner` and
            `load_adapter` of another kind, what describes their base.
        limits: Maximum sizes; see `EngineLimits`.
        runner: What runs the forward passes, for tests and other back ends; if not given, `make_runner` makes it. It
            must have `limits.max_loras` LoRA slots.
        generation_config: `"auto"` takes sampling defaults from the base's `generation_config.json`, `"none"` has none.
        prove_base: Whether `make_runner` proves that the runner computes what the base's model computes.
        batch_invariant: Whether `make_runner` makes one that computes an answer bit for bit the same in any company.
        use_cuda_graph: Whether steps that decode are captured in CUDA graphs on a GPU.
        async_scheduling: Whether such a step is queued before the tokens of the one before are sampled.
        load_adapter: What loads adapters, called in the loading thread; if not given, they are read from their folders.

    Raises:
        EngineError: Another engine owns the base, or a part of its model is not supported.
    """

    def __init__(
        self,
        base: EngineBase,
        limits: EngineLimits | None = None,
        *,
        runner: Runner | None = None,
        load_adapter: AdapterLoader | None = None,
        generation_config: GenerationConfigSource = "auto",
        prove_base: bool = True,
        batch_invariant: bool = False,
        use_cuda_graph: bool = False,
        async_scheduling: bool = False,
    ) -> None:
        self._base, self._arithmetic = base, base.arithmetic  # before layers are wrapped
        self._limits = limits or EngineLimits()
        if load_adapter is None or runner is None:
            if not isinstance(base, Base):
                raise EngineError(
                    "A base that is not of transformers needs a runner and a loader of its own."
                )
            load_adapter = load_adapter or adapter_loader(base, self._limits)
            runner = runner or make_runner(
                base,
                max_loras=self._limits.max_loras,
                prove_base=prove_base,
                batch_invariant=batch_invariant,
                make_graph=graphs_of(base.device) if use_cuda_graph else None,
            )
        self._builder = SequenceBuilder(base)
        self._defaults = (
            default_sampling_params(base.generation_config, base.vocabulary_size)
            if generation_config == "auto"
            else {}
        )
        self._compile_pool = CompilePool(self._builder.compiler)
        self._scheduler = Scheduler(self._limits, runner, load_adapter, async_scheduling=async_scheduling)
        self._batch_invariant = isinstance(runner, BatchInvariantRunner)
        self._runner_name, self._forward_name, self._proof = runner.name, runner.forward, runner.proof
        # Deques, and a reentrant lock: the garbage collector may close an abandoned stream at any point, and that
        # empties them in the same thread.
        self._inbox: deque[SequenceState] = deque()
        self._commands: deque[Callable[[], None]] = deque()
        self._rejected: Counter[str] = Counter()  # by the error's code
        self._lock = threading.RLock()  # guards these three, and `_closed`
        self._closed = False
        self._process_id = os.getpid()
        self._stepping = LeaderFollower(self._step, self._reap, self._has_pending)
        self._background = BackgroundLoop(self._stepping)
        self._loop_events = LoopEvents()

    @property
    def base_name(self) -> str:
        """The name of the base."""
        return self._base.name

    @property
    def fingerprint(self) -> BaseFingerprint:
        """The identity of the base."""
        return self._base.fingerprint

    @property
    def tokenizer(self) -> Tokenizer:
        """The base's tokenizer."""
        tokenizer: Tokenizer = self._base.tokenizer
        return tokenizer

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of a prompt and its completion together."""
        return self._base.context_length

    @property
    def default_sampling_params(self) -> Mapping[str, Any]:
        """The sampling defaults in the base's generation config."""
        return self._defaults

    # Requests

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Completes all requests; see `Engine.generate`."""
        waiter = Waiter()
        groups = [self._build(one, one.sampling.n, waiter.wake, stream=False) for one in requests]
        sequences = list(chain.from_iterable(groups))
        try:
            self._enqueue(sequences)
            for sequence in sequences:
                self._stepping.run_until(lambda output=sequence.output: output.finished, waiter)  # type: ignore[misc]
            return _completions(groups)
        finally:
            self._abort(sequences)

    def stream(self, request: Request) -> Generator[TokenOutput]:
        """Completes one request, token by token; see `Engine.stream`."""
        waiter = Waiter()
        (sequence,) = self._build(request, 1, waiter.wake, stream=True)
        return self._stream(sequence, waiter)

    async def agenerate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """As `generate`, without blocking the event loop; see `Engine.agenerate`."""
        await self._compile(requests)
        event = self._loop_events.make()
        groups = [self._build(one, one.sampling.n, event.wake, stream=False) for one in requests]
        sequences = list(chain.from_iterable(groups))
        try:
            self._enqueue(sequences)
            self._background.run(sequence.output for sequence in sequences)
            for sequence in sequences:
                while not sequence.output.finished:
                    await event.wait()
            return _completions(groups)
        finally:
            self._abort(sequences)

    def astream(self, request: Request) -> AsyncTokenStream[SequenceState]:
        """Completes one request, token by token, without blocking the event loop; see `Engine.astream`."""
        return AsyncTokenStream(self._loop_events.make, partial(self._submit, request), self._abort)

    async def _submit(self, request: Request, wake: Callable[[], None]) -> list[SequenceState]:
        await self._compile([request])
        sequences = self._build(request, request.sampling.n, wake, stream=True)
        self._enqueue(sequences)
        try:
            self._background.run(sequence.output for sequence in sequences)
        except BaseException:
            self._abort(sequences)
            raise
        return sequences

    # Adapters and the engine's life

    def pin(self, adapter: LoraRequest, pinned: bool = True) -> None:
        """Excludes an adapter from eviction, or includes it again; see `Engine.pin`."""
        self._call(partial(self._scheduler.pin, adapter, pinned))

    def preload(self, adapter: LoraRequest) -> None:
        """Loads an adapter ahead of requests; see `Engine.preload`."""
        self._refuse_if_forked()
        done: Future[None] = Future()
        with self._lock:
            self._refuse_if_closed()
            self._commands.append(partial(self._scheduler.preload, adapter, done))
        self._wait_for(done)

    def unload(self, adapter: LoraRequest) -> None:
        """Removes an adapter once no running sequence uses it; see `Engine.unload`."""
        self._refuse_if_forked()
        with self._lock:
            self._commands.append(partial(self._scheduler.unload, adapter.digest))
        self._stepping.reap()

    def stats(self) -> EngineStats:
        """A snapshot of what the engine runs and holds."""
        return replace(
            self._scheduler.stats(submitted=list(self._inbox)),
            rejected=dict(self._rejected),
            runner=self._runner_name,
            batch_invariant=self._batch_invariant,
            forward=self._forward_name,
            proof_difference=self._proof.difference if self._proof else None,
            proof_bound=self._proof.bound if self._proof else None,
            proof_seconds=self._proof.seconds if self._proof else None,
            quantization=self._base.quantization,
            weight_bytes=self._base.weight_bytes,
            compute_dtype=str(self._base.compute_dtype).removeprefix("torch."),
            arithmetic=self._arithmetic,
            matmul_dtype=str(self._base.matmul_dtype).removeprefix("torch."),
        )

    def close(self) -> None:
        """Ends all sequences with `EngineClosedError` and frees what the engine holds; may be called twice."""
        if self._is_forked:
            return  # what it holds belongs to the process that loaded it
        with self._lock:
            self._closed = True
        # As a command: what was queued before is in the scheduler by then, and no step runs meanwhile.
        self._call(self._scheduler.close)
        self._background.close()
        self._compile_pool.close()

    # In the caller's thread

    def _build(
        self, request: Request, num_sequences: int, wake: Callable[[], None], *, stream: bool
    ) -> list[SequenceState]:
        self._refuse_if_forked()
        with self._counting_rejections(num_sequences):
            sequences = self._builder.build(request, num_sequences, wake, stream=stream)
            max_length = sequences[0].max_length
            if not self._scheduler.can_ever_fit(max_length):
                raise RequestTooLongError(
                    f"A prompt and completion of up to {max_length} tokens never fit the "
                    f"{self._scheduler.max_tokens} tokens that the engine has memory for.",
                    hint="Shorten the prompt, lower max_tokens, or raise kv_cache_mib.",
                )
        return sequences

    @contextmanager
    def _counting_rejections(self, num_sequences: int) -> Iterator[None]:
        try:
            yield
        except AdapterHubError as error:
            with self._lock:
                self._rejected[error.code] += num_sequences
            raise

    async def _compile(self, requests: Sequence[Request]) -> None:
        """Compiles output formats in other threads, since it may take seconds."""
        self._refuse_if_forked()
        for request in requests:
            if request.output_format:
                with self._counting_rejections(request.sampling.n):
                    await self._compile_pool.compile(request.output_format)

    def _stream(self, sequence: SequenceState, waiter: Waiter) -> Generator[TokenOutput]:
        try:
            self._enqueue([sequence])
            finished = False
            while not finished:
                self._stepping.run_until(lambda: sequence.output.has_output, waiter)
                output = sequence.output.get()
                finished = output.finish_reason is not None
                yield output
        finally:
            self._abort([sequence])

    def _enqueue(self, sequences: Sequence[SequenceState]) -> None:
        """Queues all of the sequences or none of them."""
        max_queue = self._limits.max_queue
        with self._lock, self._counting_rejections(len(sequences)):
            self._refuse_if_closed()
            if len(sequences) > max_queue:
                raise InvalidRequestError(
                    f"{len(sequences)} completions in one call are more than {max_queue=} allows.",
                    hint="Ask in several calls, or raise max_queue.",
                )
            queued = len(self._inbox) + self._scheduler.num_waiting
            if queued + len(sequences) > max_queue:
                raise CapacityError(
                    f"{queued} sequences are waiting already, and at most {max_queue} may.",
                    hint="Try again when some have finished, or raise max_queue.",
                )
            self._inbox.extend(sequences)

    @property
    def _is_forked(self) -> bool:
        return os.getpid() != self._process_id

    def _refuse_if_forked(self) -> None:
        # Threads do not survive a fork: locks that they held stay locked, and torch waits for its own for ever.
        if self._is_forked:
            raise EngineError(
                "The engine was loaded before this process was forked, and cannot be used in it.",
                hint="Load the hub after the fork, or start processes with multiprocessing's 'spawn'.",
            )

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise EngineClosedError("The engine is closed.", hint="Make a new hub.")

    def _abort(self, sequences: Iterable[SequenceState]) -> None:
        """Ends the sequences that have not finished."""
        if self._is_forked:
            return
        unfinished = [sequence.output for sequence in sequences if not sequence.output.finished]
        for output in unfinished:
            output.aborted = True
        if unfinished:
            self._stepping.reap()

    def _call(self, function: Callable[[], None]) -> None:
        """Has the thread that steps call a function between two steps; returns or raises as it does."""
        self._refuse_if_forked()
        done: Future[None] = Future()

        def command() -> None:
            try:
                function()
            except BaseException as error:
                done.set_exception(error)
                if is_interrupt(error):
                    raise
            else:
                done.set_result(None)

        with self._lock:
            self._commands.append(command)
        self._wait_for(done)

    def _wait_for(self, done: Future[None]) -> None:
        waiter = Waiter()
        done.add_done_callback(lambda _: waiter.wake())
        self._stepping.reap()  # runs commands now, unless another thread leads
        self._stepping.run_until(done.done, waiter)
        done.result()

    # In the thread that steps

    def _step(self) -> None:
        with self._loop_events.together():
            self._step_once()

    def _step_once(self) -> None:
        try:
            self._reap()
            self._scheduler.step()
        except BaseException as error:
            if is_interrupt(error) and self._scheduler.is_consistent:
                raise  # it ends the answer of the thread that steps, and no other
            # A defect: it is unknown how far the step got, and no caller may be left waiting.
            self._scheduler.fail_all(EngineError, "The engine's step was interrupted.", hint="Ask again.")
            if is_interrupt(error):
                raise
            name = type(error).__name__  # its text might quote the prompt or the answer
            _log.error("The engine's step failed:\n%s", traceback_without_texts(error))
            raise EngineError(f"The engine's step failed ({name}).", hint="Ask again.") from error

    def _has_pending(self) -> bool:
        aborted = any(sequence.output.aborted for sequence in list(self._inbox))
        return bool(self._commands) or aborted or self._scheduler.has_pending

    def _reap(self) -> None:
        with self._lock:
            while self._inbox:
                self._scheduler.add([self._inbox.popleft()])
        while self._commands:
            self._commands.popleft()()
        self._scheduler.reap()


def adapter_loader(base: EngineBase, limits: EngineLimits | None = None) -> AdapterLoader:
    """Loads adapters from their folders and fits them to a base; raises as `load_adapter_deltas` and `DigestCheck`.

    Args:
        base: The base.
        limits: An adapter of a rank or size above these is refused before its weights are read; the defaults if not
            given.
    """
    limits = limits or EngineLimits()
    layers = base.linear_layers  # before the engine wraps layers, which changes their names
    check = DigestCheck(lambda folder: check_copied_weights(folder, base.folder, layers))

    def load(adapter: LoraRequest) -> Mapping[str, ModuleDelta]:
        fetch_files(adapter)
        limits.check_rank(adapter_rank(adapter), blend=isinstance(adapter, BlendedLoraRequest))
        limits.check_slot_weights(slot_weights(adapter) * base.compute_dtype.itemsize)
        check(adapter)
        deltas = load_adapter_deltas(adapter, base.model, layers, dtype=base.compute_dtype)
        check(adapter)  # that nobody wrote to the files meanwhile
        if base.device.type == "cuda":
            return pinned(deltas)
        is_narrower = base.compute_dtype == torch.float32 and base.model is not None
        return narrowed(deltas) if is_narrower else deltas

    return load


def narrowed(deltas: Mapping[str, ModuleDelta]) -> dict[str, ModuleDelta]:
    """The changes of an adapter in float32, with LoRA in bfloat16 where that is exact: half the memory to read."""
    return {
        name: delta.in_bfloat16() if isinstance(delta, LoraDelta) else delta for name, delta in deltas.items()
    }


def pinned(deltas: Mapping[str, ModuleDelta]) -> Mapping[str, ModuleDelta]:
    """The changes of an adapter with LoRA in pinned memory, or as they are where the system has no more of it."""
    try:
        return {
            name: delta.pin_memory() if isinstance(delta, LoraDelta) else delta
            for name, delta in deltas.items()
        }
    except RuntimeError as error:
        _log.warning("An adapter is copied to the GPU from memory that is not pinned: %s", error)
        return deltas


def _completions(groups: Sequence[Sequence[SequenceState]]) -> list[list[Completion]]:
    return [[Completion.of(sequence.output.get_all()) for sequence in group] for group in groups]
