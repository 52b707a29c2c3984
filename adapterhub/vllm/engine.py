"""The engine that is a vLLM server, or several: token ids go there, and tokens come back, over `/v1/completions`.

Prompts are rendered, texts decoded and answers checked here, as for the in-process engine. All HTTP is done by one
thread of the engine's own; callers wait for what it puts into their sequences' queues.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.engine.decoding.compile_pool import CompilePool
from adapterhub.engine.generation_config import GenerationConfigSource, default_sampling_params
from adapterhub.engine.interface import Completion, LoraRequest, Request, TokenOutput
from adapterhub.engine.meter import Residency
from adapterhub.engine.scheduling.async_stream import AsyncTokenStream
from adapterhub.engine.scheduling.leader_follower import Waiter
from adapterhub.engine.scheduling.loop_events import LoopEvents
from adapterhub.engine.stats import EngineStats
from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.errors import (
    AdapterHubError,
    CapacityError,
    EngineClosedError,
    EngineError,
    InvalidRequestError,
)
from adapterhub.registry import AdapterRegistry
from adapterhub.vllm.adapter_names import AdapterName
from adapterhub.vllm.base import ServedBase
from adapterhub.vllm.client import Timeouts
from adapterhub.vllm.connecting import Connection
from adapterhub.vllm.fleet import FleetLimits
from adapterhub.vllm.replica import ReplicaState
from adapterhub.vllm.sequences import ServedSequence, ServedSequenceBuilder


class VLLMEngine:
    """Serves a base and its adapters through vLLM servers; see `Engine`. Any thread may call any method.

    The servers are asked now what they serve; one of them has to answer.

    Args:
        urls: One URL, or several servers with the same base, such as `"http://host:8000"`.
        base: The base's name, folder or hub id, for its tokenizer and identity; weights are not loaded. If not given,
            what the servers were given as `--model`.
        revision: A branch, tag or commit of a base's hub id.
        limits: Limits for each server.
        max_queue: Maximum number of sequences that wait for a server; beyond it requests are refused.
        timeouts: How long servers may take.
        api_key: What the servers were started with as `--api-key`; if not given, `ADAPTERHUB_UPSTREAM_API_KEY`.
        generation_config: `"auto"` takes sampling defaults from the base's `generation_config.json`, `"none"` has none.
        registry: Whose adapters they serve: they unload what it no longer has. Blends are written in its folder, under
            `.blends`. None: they unload nothing for that, and blends are refused.
        adapters_at: The path of the registry's folder on the servers, such as `"/mnt/adapters"`; None if it is the
            same as here.

    Raises:
        ConfigError: A URL or the base is not valid, the base is not the servers', or the servers differ.
        EngineError: No server answers as vLLM does.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        base: str | Path | ServedBase | None = None,
        *,
        revision: str | None = None,
        limits: FleetLimits | None = None,
        max_queue: int = 1024,
        timeouts: Timeouts | None = None,
        api_key: str | None = None,
        generation_config: GenerationConfigSource = "auto",
        registry: AdapterRegistry | None = None,
        adapters_at: str | Path | None = None,
    ) -> None:
        self._connection = Connection(
            urls,
            limits=limits,
            timeouts=timeouts,
            api_key=api_key,
            registry=registry,
            adapters_at=adapters_at,
        )
        # Of an engine that nobody has closed; at exit the daemon thread ends by itself.
        self._finalizer = weakref.finalize(self, self._connection.close)
        self._finalizer.atexit = False
        try:
            self._base = self._connection.served_base(base, revision)
            self._context_length = self._connection.context_length
            self._builder = ServedSequenceBuilder(self._base, self._context_length)
        except BaseException:
            self._finalizer()
            raise
        self._defaults = (
            default_sampling_params(self._base.generation_config, self._base.vocabulary_size)
            if generation_config == "auto"
            else {}
        )
        self._compile_pool = CompilePool(self._builder.compiler)
        self._runner, self._loop = self._connection.runner, self._connection.loop
        self._max_queue = max_queue
        self._pinned: set[str] = set()  # digests
        self._rejected: Counter[str] = Counter()  # by the error's code
        self._lock = threading.RLock()  # guards it, the queue's length, and `_closed`
        self._closed = False
        self._process_id = os.getpid()
        self._loop_events = LoopEvents()

    @property
    def base_name(self) -> str:
        """The name of the base."""
        return self._base.name

    @property
    def fingerprint(self) -> BaseFingerprint | None:
        """The identity of the base."""
        return self._base.fingerprint

    @property
    def tokenizer(self) -> Tokenizer:
        """The base's tokenizer."""
        tokenizer: Tokenizer = self._base.tokenizer
        return tokenizer

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of a prompt and its completion together: vLLM's `--max-model-len`."""
        return self._context_length

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
                while not sequence.output.finished:
                    waiter.wait()
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
            for sequence in sequences:
                while not sequence.output.finished:
                    await event.wait()
            return _completions(groups)
        finally:
            self._abort(sequences)

    def astream(self, request: Request) -> AsyncTokenStream[ServedSequence]:
        """Completes one request, token by token, without blocking the event loop; see `Engine.astream`."""
        return AsyncTokenStream(self._loop_events.make, partial(self._submit, request), self._abort)

    async def _submit(self, request: Request, wake: Callable[[], None]) -> list[ServedSequence]:
        await self._compile([request])
        sequences = self._build(request, request.sampling.n, wake, stream=True)
        self._enqueue(sequences)
        return sequences

    # Adapters and the engine's life

    def pin(self, adapter: LoraRequest, pinned: bool = True) -> None:
        """Has all servers load an adapter and keep it, or lets it make room again; see `Engine.pin`."""
        self._refuse_if_forked()
        self._connection.pin(adapter, pinned)
        (self._pinned.add if pinned else self._pinned.discard)(adapter.digest)

    def preload(self, adapter: LoraRequest) -> None:
        """Loads an adapter ahead of requests, on the server that gets them; see `Engine.preload`."""
        self._refuse_if_forked()
        self._refuse_if_closed()
        self._connection.preload(adapter)

    def unload(self, adapter: LoraRequest) -> None:
        """Has all servers unload an adapter once no running sequence uses it; see `Engine.unload`."""
        self._refuse_if_forked()
        with suppress(EngineClosedError):
            self._connection.unload(adapter)

    def drain(self, url: str, draining: bool = True) -> None:
        """Gives a server no new requests, so that it can be stopped when it has none; or gives it requests again.

        Args:
            url: Its URL, as in `replicas`, which also says how many requests it still has.
            draining: False ends it.

        Raises:
            EngineClosedError: The engine is closed.
            InvalidRequestError: There is no such server.
        """
        self._refuse_if_forked()
        self._refuse_if_closed()
        self._connection.drain(url, draining)

    def replicas(self) -> tuple[ReplicaState, ...]:
        """A snapshot of each server."""
        if not self._is_forked:
            with suppress(EngineClosedError):
                return self._connection.replicas()
        return ()

    def stats(self) -> EngineStats:
        """A snapshot of what runs, as far as it is known here; memory and steps are the servers' own affair."""
        stats = self._runner.stats(Residency(pinned=frozenset(self._pinned)))
        names = {name for state in self.replicas() for name in state.adapters}
        loaded = {f"{name.adapter}@{name.version}" for name in map(AdapterName.parse, names) if name}
        adapters = {
            name: replace(adapter, in_host_memory=name in loaded) for name, adapter in stats.adapters.items()
        }
        return replace(
            stats,
            adapters=adapters,
            host_adapters=len(names),
            rejected=dict(self._rejected),
            runner="vllm",
            forward="vllm",
        )

    def close(self) -> None:
        """Ends all sequences with `EngineClosedError` and all connections; may be called twice."""
        if self._is_forked:
            return
        with self._lock:
            self._closed = True
        self._finalizer()
        self._compile_pool.close()

    # In the caller's thread

    def _build(
        self, request: Request, num_sequences: int, wake: Callable[[], None], *, stream: bool
    ) -> list[ServedSequence]:
        self._refuse_if_forked()
        with self._counting_rejections(num_sequences):
            self._connection.check_blend(request.adapter)
            return self._builder.build(request, num_sequences, wake, stream=stream)

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

    def _stream(self, sequence: ServedSequence, waiter: Waiter) -> Generator[TokenOutput]:
        try:
            self._enqueue([sequence])
            finished = False
            while not finished:
                while not sequence.output.has_output:
                    waiter.wait()
                output = sequence.output.get()
                finished = output.finish_reason is not None
                yield output
        finally:
            self._abort([sequence])

    def _enqueue(self, sequences: Sequence[ServedSequence]) -> None:
        """Queues all of the sequences or none of them."""
        with self._lock, self._counting_rejections(len(sequences)):
            self._refuse_if_closed()
            if len(sequences) > self._max_queue:
                raise InvalidRequestError(
                    f"{len(sequences)} completions in one call are more than max_queue={self._max_queue} allows.",
                    hint="Ask in several calls, or raise max_queue.",
                )
            if self._runner.num_waiting + len(sequences) > self._max_queue:
                raise CapacityError(
                    f"{self._runner.num_waiting} sequences wait for a vLLM server already, and at most "
                    f"{self._max_queue} may.",
                    hint="Try again when some have finished, or raise max_queue.",
                )
            self._runner.add(sequences)
            # Within the lock: after `close` nothing would start them.
            self._loop.call_soon(self._runner.start, sequences)

    def _abort(self, sequences: Iterable[ServedSequence]) -> None:
        """Ends the sequences that have not finished."""
        if self._is_forked:
            return
        for sequence in sequences:
            if not sequence.output.finished:
                sequence.output.aborted = True
                self._loop.call_soon(self._runner.cancel, sequence)

    @property
    def _is_forked(self) -> bool:
        return os.getpid() != self._process_id

    def _refuse_if_forked(self) -> None:
        if self._is_forked:  # threads do not survive a fork
            raise EngineError(
                "The engine was connected before this process was forked, and cannot be used in it.",
                hint="Connect the hub after the fork, or start processes with multiprocessing's 'spawn'.",
            )

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise EngineClosedError("The engine is closed.", hint="Make a new hub.")


def _completions(groups: Sequence[Sequence[ServedSequence]]) -> list[list[Completion]]:
    return [[Completion.of(sequence.output.get_all()) for sequence in group] for group in groups]
