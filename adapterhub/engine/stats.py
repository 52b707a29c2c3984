"""Statistics of an engine."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.engine.runner import PromptCache, SlotCache
    from adapterhub.engine.scheduling.cpu_adapter_cache import CpuAdapterCache
    from adapterhub.engine.scheduling.lora_slots import LoraSlotTable

_RECENT_STEPS = 100


@dataclass(frozen=True)
class EngineStats:
    """A snapshot of what an engine runs and holds.

    Attributes:
        running: Running sequences.
        waiting: Waiting sequences.
        tokens: Tokens generated since the start.
        steps: Steps since the start.
        tokens_per_second: Generated tokens for each second of the last 100 steps.
        max_loras: Number of LoRA slots.
        resident: Adapters in LoRA slots.
        slot_users: Running sequences with an adapter.
        hits: Sequences that found their adapter in a slot.
        loads: Adapters put into a slot.
        evictions: Adapters evicted from a slot.
        host_adapters: Adapters in host memory.
        load_seconds: Median time to load an adapter from disk; 0 before the first.
        adapter_bytes: Bytes of the LoRA slots.
        host_bytes: Bytes of the adapters in host memory.
        kv_slots: KV slots in use.
        kv_tokens: Tokens that the allocated KV slots have room for.
        kv_bytes: Bytes of the allocated KV slots.
        prefix_cache_tokens: Tokens in the prefix cache.
        prefix_cache_hit_tokens: Tokens of prompts taken from the prefix cache since the start.
        quantization: How the base's linear layers are stored, such as `"nf4"`; None if unquantised.
        weight_bytes: Bytes of the base's weights.
        compute_dtype: The dtype of activations.
        matmul_dtype: The dtype in which 4-bit and unquantised layers multiply. It is bfloat16 beside a `compute_dtype`
            of float32 where `load_base` was left to choose and the CPU has bitsandbytes' fast kernel.
        arithmetic: In words, how the base is multiplied on this machine and why: dtypes, from how many tokens of a step
            packed 4-bit layers are dense, the output layer.
        runner: How steps are computed: `"packed"`, all sequences in one forward pass; `"row by row"`, one for each
            sequence, with transformers' own attention and cache; or `"llama.cpp"`.
        batch_invariant: Whether an answer is bit for bit the same in any company.
        forward: What computes the layers: `"native"`, a forward pass that is written out for decoders of Llama's
            structure; `"transformers"`; or `"llama.cpp"`.
        proof_difference: By how much the logits of the engine's steps differed from those of the model's own forward
            pass when the base was loaded, in their standard deviations; None if nothing was proved.
        proof_bound: By how much rounding may change them.
        proof_seconds: How long the proof took.
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
    kv_slots: int = 0
    kv_tokens: int = 0
    kv_bytes: int = 0
    prefix_cache_tokens: int = 0
    prefix_cache_hit_tokens: int = 0
    quantization: str | None = None
    weight_bytes: int = 0
    compute_dtype: str = ""
    matmul_dtype: str = ""
    arithmetic: tuple[str, ...] = ()
    runner: str = ""
    batch_invariant: bool = False
    forward: str = ""
    proof_difference: float | None = None
    proof_bound: float | None = None
    proof_seconds: float | None = None


class Meter:
    """Counts steps and tokens. The thread that steps calls `record`; any thread may call `stats`."""

    def __init__(self) -> None:
        self._tokens = self._steps = 0
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT_STEPS)

    def record(self, tokens: int, seconds: float) -> None:
        """Counts one step: the tokens it generated and the time it took."""
        self._tokens += tokens
        self._steps += 1
        self._recent.append((tokens, seconds))

    def stats(
        self,
        *,
        running: int,
        waiting: int,
        lora_slots: LoraSlotTable,
        max_loras: int,
        cpu_cache: CpuAdapterCache[Any],
        kv_cache: SlotCache,
        prefix_cache: PromptCache,
        adapter_bytes: int,
    ) -> EngineStats:
        """A snapshot of the counts and of the parts of an engine."""
        recent = list(self._recent)
        seconds = sum(second for _, second in recent)
        load_seconds = list(cpu_cache.load_seconds)
        return EngineStats(
            running=running,
            waiting=waiting,
            tokens=self._tokens,
            steps=self._steps,
            tokens_per_second=sum(tokens for tokens, _ in recent) / seconds if seconds else 0.0,
            max_loras=max_loras,
            resident=len(lora_slots.resident),
            slot_users=sum(lora_slots.ref_counts.values()),
            hits=lora_slots.hits,
            loads=lora_slots.loads,
            evictions=lora_slots.evictions,
            host_adapters=cpu_cache.num_adapters,
            load_seconds=statistics.median(load_seconds) if load_seconds else 0.0,
            adapter_bytes=adapter_bytes,
            host_bytes=cpu_cache.bytes,
            kv_slots=kv_cache.num_slots,
            kv_tokens=kv_cache.allocated_tokens,
            kv_bytes=kv_cache.bytes,
            prefix_cache_tokens=prefix_cache.num_tokens,
            prefix_cache_hit_tokens=prefix_cache.hit_tokens,
        )
