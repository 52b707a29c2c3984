"""Counts and times what an engine does, for `EngineStats`.

Written by the thread that steps, at the few points where a sequence changes its state; read by any.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from adapterhub.engine.histogram import (
    FIRST_TOKEN_BUCKETS,
    LATENCY_BUCKETS,
    NEXT_TOKEN_BUCKETS,
    TOKENS_BUCKETS,
    HistogramRecorder,
)
from adapterhub.engine.interface import LoraRequest, Timings
from adapterhub.engine.stats import AdapterStats

BASE = "base"
MAX_ADAPTERS = 1024
"""How many adapters have counts of their own; those of the least recently used one are dropped for another."""
_RECENT_STEPS = 100
EndReason = Literal["stop", "length", "abort", "error"]


@dataclass
class SequenceTimes:
    """When what happened to a sequence, in seconds of `time.perf_counter`; None while it has not."""

    queued: float = field(default_factory=time.perf_counter)
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    gap: float = 0.0
    """Between the last two tokens."""
    has_ended: bool = False

    def start(self) -> None:
        """Notes that it takes part in steps from now on."""
        self.started = time.perf_counter()

    def token(self) -> None:
        """Notes that a token was sampled."""
        now = time.perf_counter()
        if self.last_token is None:
            self.first_token = now
        else:
            self.gap = now - self.last_token
        self.last_token = now

    def timings(self) -> Timings:
        """The times of a sequence that has a token."""
        started = self.queued if self.started is None else self.started
        first = started if self.first_token is None else self.first_token
        last = first if self.last_token is None else self.last_token
        return Timings(started - self.queued, first - started, last - first)


class Metered(Protocol):
    """What is counted of a sequence; `SequenceState` has it."""

    @property
    def adapter(self) -> LoraRequest | None: ...

    @property
    def prompt_token_ids(self) -> Sequence[int]: ...

    @property
    def output_token_ids(self) -> Sequence[int]: ...

    @property
    def times(self) -> SequenceTimes: ...


@dataclass
class _Counts:
    digest: str
    prompt_tokens: int = 0
    tokens: int = 0
    finished: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Residency:
    """The digests of the adapters in LoRA slots, those in host memory, and those that are pinned."""

    slots: frozenset[str] = frozenset()
    host: frozenset[str] = frozenset()
    pinned: frozenset[str] = frozenset()


class Meter:
    """Counts steps, sequences and tokens, in all and by adapter. One thread writes; any may call `figures`."""

    def __init__(self) -> None:
        self._submitted = self._tokens = self._steps = self._prompt_tokens = self._query_tokens = 0
        self._finished: dict[EndReason, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT_STEPS)
        self._adapters: OrderedDict[str, _Counts] = OrderedDict()  # least recently used first
        self._first_token = HistogramRecorder(FIRST_TOKEN_BUCKETS)
        self._next_token = HistogramRecorder(NEXT_TOKEN_BUCKETS)
        self._queue, self._prefill, self._decode, self._whole = (
            HistogramRecorder(LATENCY_BUCKETS) for _ in range(4)
        )
        self._prompt_lengths, self._answer_lengths = (HistogramRecorder(TOKENS_BUCKETS) for _ in range(2))

    def submit(self, sequence: Metered) -> None:
        """Counts a sequence that begins to wait."""
        self._submitted += 1
        self.note(sequence.adapter)

    def note(self, adapter: LoraRequest | None) -> None:
        """Remembers the name of an adapter, as the most recently used one."""
        name = adapter.name if adapter else BASE
        counts = self._adapters.setdefault(name, _Counts(""))
        counts.digest = adapter.digest if adapter else ""
        self._adapters.move_to_end(name)
        if len(self._adapters) > MAX_ADAPTERS:
            self._adapters.popitem(last=False)

    def start(self, sequence: Metered) -> None:
        """Counts a sequence that starts, and looks for its prompt in the prefix cache."""
        sequence.times.start()
        self._query_tokens += len(sequence.prompt_token_ids)

    def token(self, sequence: Metered) -> None:
        """Counts a sampled token, which the sequence's times have noted."""
        times, counts = sequence.times, self._counts_of(sequence)
        self._tokens += 1
        counts.tokens += 1
        if times.first_token == times.last_token and times.first_token is not None:
            prompt_tokens = len(sequence.prompt_token_ids)
            self._prompt_tokens += prompt_tokens
            counts.prompt_tokens += prompt_tokens
            self._first_token.observe(times.first_token - times.queued)
        else:
            self._next_token.observe(times.gap)

    def end(self, sequence: Metered, reason: EndReason) -> None:
        """Counts a sequence that has ended, once; those that have an answer count in the histograms too."""
        times = sequence.times
        if times.has_ended:
            return
        times.has_ended = True
        self._finished[reason] += 1
        finished = self._counts_of(sequence).finished
        finished[reason] = finished.get(reason, 0) + 1
        if reason in ("stop", "length"):
            timings = times.timings()
            self._queue.observe(timings.queue_seconds)
            self._prefill.observe(timings.prefill_seconds)
            self._decode.observe(timings.decode_seconds)
            self._whole.observe(timings.total_seconds)
            self._prompt_lengths.observe(len(sequence.prompt_token_ids))
            self._answer_lengths.observe(len(sequence.output_token_ids))

    def record(self, tokens: int, seconds: float) -> None:
        """Counts one step: the tokens it generated and the time it took."""
        self._steps += 1
        self._recent.append((tokens, seconds))

    def figures(
        self, running: Iterable[Metered], waiting: Iterable[Metered], submitted: int, residency: Residency
    ) -> dict[str, Any]:
        """Fields of `EngineStats`.

        Args:
            running: The sequences that run.
            waiting: Those that wait.
            submitted: How many of those have not been counted by `submit`.
            residency: Where adapters are.
        """
        recent = list(self._recent)
        seconds = sum(second for _, second in recent)
        return {
            "submitted": self._submitted + submitted,
            "tokens": self._tokens,
            "prompt_tokens": self._prompt_tokens,
            "prefix_cache_query_tokens": self._query_tokens,
            "steps": self._steps,
            "tokens_per_second": sum(tokens for tokens, _ in recent) / seconds if seconds else 0.0,
            "finished": dict(self._finished),
            "adapters": self._adapter_stats(running, waiting, residency),
            "histograms": {
                "time_to_first_token_seconds": self._first_token.snapshot(),
                "inter_token_latency_seconds": self._next_token.snapshot(),
                "request_queue_time_seconds": self._queue.snapshot(),
                "request_prefill_time_seconds": self._prefill.snapshot(),
                "request_decode_time_seconds": self._decode.snapshot(),
                "e2e_request_latency_seconds": self._whole.snapshot(),
                "request_prompt_tokens": self._prompt_lengths.snapshot(),
                "request_generation_tokens": self._answer_lengths.snapshot(),
            },
        }

    def _counts_of(self, sequence: Metered) -> _Counts:
        name = sequence.adapter.name if sequence.adapter else BASE
        counts = self._adapters.get(name)
        if counts is None:  # dropped for another one meanwhile
            self.note(sequence.adapter)
            counts = self._adapters[name]
        return counts

    def _adapter_stats(
        self, running: Iterable[Metered], waiting: Iterable[Metered], residency: Residency
    ) -> Mapping[str, AdapterStats]:
        runs, waits = _by_name(running), _by_name(waiting)
        return {
            name: AdapterStats(
                running=runs.get(name, 0),
                waiting=waits.get(name, 0),
                prompt_tokens=counts.prompt_tokens,
                tokens=counts.tokens,
                finished=dict(counts.finished),
                in_slot=counts.digest in residency.slots,
                in_host_memory=counts.digest in residency.host,
                pinned=counts.digest in residency.pinned,
            )
            for name, counts in list(self._adapters.items())
        }


def _by_name(sequences: Iterable[Metered]) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for sequence in sequences:
        name = sequence.adapter.name if sequence.adapter else BASE
        numbers[name] = numbers.get(name, 0) + 1
    return numbers
