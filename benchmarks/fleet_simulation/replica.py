"""One replica: a batching engine with LoRA slots, whose steps take the seconds that were measured.

While nothing joins or leaves the batch all steps take equally long, so that one event stands for many of them: the next
answer that ends. What arrives in between ends such a run at the next boundary of a step.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from adapterhub.fleet import ReplicaLoad
from benchmarks.fleet_simulation.service_times import ServiceTimes


@dataclass(frozen=True)
class ReplicaLimits:
    """Sizes of a replica, under vLLM's names where it has them.

    Attributes:
        max_loras: LoRA slots.
        max_cpu_loras: Adapters in host memory.
        max_num_seqs: Requests that run at once.
        max_num_batched_tokens: Tokens of prompts that one step reads; of a longer prompt, all.
        max_in_flight: Requests that it may have, those that wait included.
    """

    max_loras: int = 16
    max_cpu_loras: int = 64
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    max_in_flight: int = 128


@dataclass(eq=False, slots=True)
class SimulatedRequest:
    """One request, and what became of it. Times are in seconds of the simulation.

    Attributes:
        number: Its place in the trace.
        at: When it arrives.
        adapter: Its adapter.
        prompt_tokens: Tokens of its prompt.
        output_tokens: Tokens of its answer.
        replica: The replica's name; None if it was refused.
        first_token: When its first token was there.
        end: When its last one was.
        disk_load: Whether its adapter had to be read from disk for it.
        slot_hit: Whether its adapter was in a LoRA slot when it started.
        bypassed: How many later requests started before it.
    """

    number: int
    at: float
    adapter: str
    prompt_tokens: int
    output_tokens: int
    replica: str | None = None
    first_token: float = math.nan
    end: float = math.nan
    disk_load: bool = False
    slot_hit: bool = False
    bypassed: int = 0


@dataclass(eq=False, slots=True)
class _Run:
    """Steps of equal length."""

    start: float
    step_seconds: float
    steps: int
    may_be_cut: bool

    @property
    def end(self) -> float:
        return self.start + self.steps * self.step_seconds


Schedule = Callable[[float, Callable[[float], None]], None]
"""Asks for a call at a time."""


@dataclass(eq=False)
class Replica:
    """A simulated replica.

    Args:
        name: Its name.
        limits: Its sizes.
        times: What its work takes.
        schedule: Asks for a call at a time.
    """

    name: str
    limits: ReplicaLimits
    times: ServiceTimes
    schedule: Schedule
    _host: OrderedDict[str, float] = field(default_factory=OrderedDict)  # when each is read, LRU first
    _slots: OrderedDict[str, None] = field(default_factory=OrderedDict)  # LRU first
    _wanted: Counter[str] = field(default_factory=Counter)  # requests, waiting or running, of each adapter
    _users: Counter[str] = field(default_factory=Counter)  # running ones
    _waiting: list[SimulatedRequest] = field(default_factory=list)
    _running: list[tuple[int, int, SimulatedRequest]] = field(default_factory=list)  # heap by the last step
    _steps: int = 0
    _stopped_seconds: float = 0.0  # reading that the next step waits for
    _loading_until: float = 0.0
    _run: _Run | None = None

    def __post_init__(self) -> None:
        self.load = ReplicaLoad(self.name, 0, self.limits.max_in_flight)

    @property
    def has_room(self) -> bool:
        """Whether it takes one more request."""
        return self.load.in_flight < self.load.max_in_flight

    def submit(self, request: SimulatedRequest, now: float) -> None:
        """Takes a request, and reads its adapter from disk unless host memory has it."""
        request.replica = self.name
        self._wanted[request.adapter] += 1
        request.disk_load = request.adapter not in self._host
        if request.disk_load:
            self._read(request.adapter, now)
        else:
            self._host.move_to_end(request.adapter)
        self._waiting.append(request)
        self._publish(+1, adapters_changed=request.disk_load)
        if self._host[request.adapter] <= now:
            self._wake(now)

    def forget(self) -> None:
        """Empties host memory and slots, but for adapters of requests that it still has."""
        for memory in (self._host, self._slots):
            for adapter in [one for one in memory if not self._wanted[one]]:
                del memory[adapter]
        self._publish(0, adapters_changed=True)

    def _publish(self, change: int, *, adapters_changed: bool = False) -> None:
        adapters = frozenset(self._host) if adapters_changed else self.load.adapters
        in_flight = self.load.in_flight + change
        self.load = ReplicaLoad(self.name, in_flight, self.limits.max_in_flight, adapters, len(adapters))

    # Adapters

    def _read(self, adapter: str, now: float) -> None:
        """Disk to host memory, one adapter after the other."""
        if self.times.disk_load_stops_steps:
            self._stopped_seconds += self.times.disk_load
            self._host[adapter] = now
        else:
            self._loading_until = max(now, self._loading_until) + self.times.disk_load
            self._host[adapter] = self._loading_until
            self.schedule(self._loading_until, self._wake)
        if len(self._host) > self.limits.max_cpu_loras:
            unused = next((one for one in self._host if not self._wanted[one]), None)
            if unused is not None:
                del self._host[unused]

    def _slot_for(self, adapter: str) -> bool:
        """Whether the adapter has a LoRA slot now; the least recently used one that nobody uses is emptied for it."""
        if adapter in self._slots:
            self._slots.move_to_end(adapter)
            return True
        if len(self._slots) >= self.limits.max_loras:
            idle = next((one for one in self._slots if not self._users[one]), None)
            if idle is None:
                return False
            del self._slots[idle]
        self._slots[adapter] = None
        return True

    # Steps

    def _wake(self, now: float) -> None:
        """Something may start: at once if nothing runs, else after this step."""
        if self._run is None:
            self._begin(now)
        elif self._run.may_be_cut and len(self._running) < self.limits.max_num_seqs:
            steps = max(1, math.ceil((now - self._run.start) / self._run.step_seconds))
            if steps < self._run.steps:
                self._start_run(_Run(self._run.start, self._run.step_seconds, steps, may_be_cut=False))

    def _begin(self, now: float) -> None:
        """Starts what can start, and the next steps."""
        started, loads = self._start_requests(now)
        if not self._running:
            return
        prompts = sum(request.prompt_tokens for request in started)
        seconds = self.times.step_seconds(len(self._running), len(self._users), prompts)
        seconds += loads * self.times.slot_load + self._stopped_seconds
        ordinary = not started and not self._stopped_seconds
        self._stopped_seconds = 0.0
        steps = self._running[0][0] - self._steps if ordinary else 1
        self._start_run(_Run(now, seconds, steps, may_be_cut=steps > 1))
        for request in started:
            request.first_token = now + seconds

    def _start_requests(self, now: float) -> tuple[list[SimulatedRequest], int]:
        """The requests that start now, in order of arrival, and how many adapters go into slots for them."""
        started: list[SimulatedRequest] = []
        bypassed: list[SimulatedRequest] = []
        tokens = loads = 0
        for request in self._waiting:
            full = len(self._running) >= self.limits.max_num_seqs
            if full or any(one.bypassed >= 4 * self.limits.max_num_seqs for one in bypassed[:1]):
                break
            if self._host[request.adapter] > now:
                continue
            if started and tokens + request.prompt_tokens > self.limits.max_num_batched_tokens:
                break
            request.slot_hit = request.adapter in self._slots
            if not self._slot_for(request.adapter):
                bypassed.append(request)
                continue
            loads += not request.slot_hit
            tokens += request.prompt_tokens
            self._users[request.adapter] += 1
            heapq.heappush(self._running, (self._steps + request.output_tokens, request.number, request))
            started.append(request)
            for earlier in bypassed:
                earlier.bypassed += 1
        if started:
            gone = {request.number for request in started}
            self._waiting = [one for one in self._waiting if one.number not in gone]
        return started, loads

    def _start_run(self, run: _Run) -> None:
        self._run = run

        def end(now: float) -> None:
            if self._run is run:  # and was not cut
                self._end_run(run, now)

        self.schedule(run.end, end)

    def _end_run(self, run: _Run, now: float) -> None:
        self._run = None
        self._steps += run.steps
        while self._running and self._running[0][0] <= self._steps:
            _, _, request = heapq.heappop(self._running)
            request.end = now
            for counter in (self._users, self._wanted):
                counter[request.adapter] -= 1
                if not counter[request.adapter]:
                    del counter[request.adapter]
            self._publish(-1)
        self._begin(now)
