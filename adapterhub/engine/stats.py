"""What an engine does and holds, in numbers."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.engine.kv.cache import KVCache
    from adapterhub.engine.kv.prefix_cache import PrefixCache
    from adapterhub.engine.scheduling.cpu_adapter_cache import CpuAdapterCache
    from adapterhub.engine.scheduling.lora_slots import LoraSlotTable

_RECENT_STEPS = 100


@dataclass(frozen=True)
class EngineStats:
    """A snapshot.

    Attributes:
        running: Answers in the batch.
        waiting: Answers in the queue.
        tokens: Tokens generated since the start.
        steps: Forward passes since the start.
        tokens_per_second: Over the time of the last hundred steps.
        max_loras: Slots in the model.
        resident: Adapters in slots.
        slot_users: Answers that use a slot.
        hits: Answers that found their adapter in a slot.
        loads: Adapters put into a slot.
        evictions: Adapters that had to leave a slot.
        host_adapters: Adapters in host memory.
        load_seconds: Median time to read an adapter from disk; 0 before the first.
        adapter_bytes: What the slots take.
        host_bytes: What the adapters in host memory take.
        kv_lanes: Lanes in use.
        kv_tokens: Tokens that the allocated lanes have room for.
        kv_bytes: What the lanes take.
        prefix_tokens: Tokens of prompts that are kept.
        prefix_hit_tokens: Tokens of prompts that were not computed again, since the start.
    """

    running: int = 0
    waiting: int = 0
    tokens: int = 0
    steps: int = 0
    tokens_per_second: float = 0.0
    max_loras: int = 0
    resident: int = 0
    slot_users: int = 0
    hits: int = 0
    loads: int = 0
    evictions: int = 0
    host_adapters: int = 0
    load_seconds: float = 0.0
    adapter_bytes: int = 0
    host_bytes: int = 0
    kv_lanes: int = 0
    kv_tokens: int = 0
    kv_bytes: int = 0
    prefix_tokens: int = 0
    prefix_hit_tokens: int = 0


class Meter:
    """Counts what an engine does."""

    def __init__(self) -> None:
        self._tokens = self._steps = 0
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT_STEPS)

    def step(self, tokens: int, seconds: float) -> None:
        """Notes one step."""
        self._tokens += tokens
        self._steps += 1
        self._recent.append((tokens, seconds))

    def stats(
        self,
        *,
        running: int,
        waiting: int,
        slots: LoraSlotTable,
        max_loras: int,
        host: CpuAdapterCache[Any],
        lanes: KVCache,
        prefixes: PrefixCache,
        adapter_bytes: int,
    ) -> EngineStats:
        """A snapshot with what the engine's parts hold."""
        recent = list(self._recent)
        seconds = sum(second for _, second in recent)
        return EngineStats(
            running=running,
            waiting=waiting,
            tokens=self._tokens,
            steps=self._steps,
            tokens_per_second=sum(tokens for tokens, _ in recent) / seconds if seconds else 0.0,
            max_loras=max_loras,
            resident=len(slots.resident),
            slot_users=sum(slots.users_of.values()),
            hits=slots.hits,
            loads=slots.loads,
            evictions=slots.evictions,
            host_adapters=host.adapters,
            load_seconds=statistics.median(host.load_seconds) if host.load_seconds else 0.0,
            adapter_bytes=adapter_bytes,
            host_bytes=host.bytes,
            kv_lanes=lanes.lanes,
            kv_tokens=lanes.tokens,
            kv_bytes=lanes.bytes,
            prefix_tokens=prefixes.tokens,
            prefix_hit_tokens=prefixes.hit_tokens,
        )
