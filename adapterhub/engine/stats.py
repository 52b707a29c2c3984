"""Statistics of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapterhub.engine.histogram import Histogram


@dataclass(frozen=True)
class AdapterStats:
    """What an engine does with one adapter, or with the base alone.

    Attributes:
        running: Its running sequences.
        waiting: Its waiting sequences.
        prompt_tokens: Tokens of its prompts since the start.
        tokens: Tokens generated since the start.
        finished: Its sequences that have ended since the start, as in `EngineStats`.
        in_slot: Whether it is in a LoRA slot.
        in_host_memory: Whether it is in host memory.
        pinned: Whether it is excluded from eviction.
    """

    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    finished: Mapping[str, int] = field(default_factory=dict)
    in_slot: bool = False
    in_host_memory: bool = False
    pinned: bool = False


@dataclass(frozen=True)
class EngineStats:
    """A snapshot of what an engine runs and holds.

    Attributes:
        running: Running sequences.
        waiting: Waiting sequences.
        submitted: Sequences that were queued since the start; those of `finished`, `running` and `waiting` together.
        finished: Sequences that have ended since the start: `"stop"`, `"length"`, `"abort"` or `"error"` -> number.
        rejected: Sequences that were refused since the start: code of the error -> number.
        tokens: Tokens generated since the start.
        prompt_tokens: Tokens since the start of prompts whose first token was generated, cached ones too.
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
        kv_cache_usage: The share of the memory for keys and values that running sequences have, 0 to 1.
        kv_max_tokens: Tokens that there is memory for, of all running sequences together.
        kv_tokens: Tokens that the allocated KV slots have room for.
        kv_bytes: Bytes of the allocated KV slots.
        prefix_cache_tokens: Tokens in the prefix cache.
        prefix_cache_query_tokens: Tokens of prompts that were looked for in the prefix cache since the start.
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
        adapters: What is done with each adapter: `"name@version"`, a blend's reference, or `"base"`. It has the 1,024
            adapters that were used last.
        histograms: Under vLLM's names, with its buckets: `time_to_first_token_seconds`, from the queue on, and
            `inter_token_latency_seconds` of all tokens; of completed answers `request_queue_time_seconds`,
            `request_prefill_time_seconds`, `request_decode_time_seconds`, `e2e_request_latency_seconds`,
            `request_prompt_tokens` and `request_generation_tokens`.
    """

    running: int = 0
    waiting: int = 0
    submitted: int = 0
    finished: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    tokens: int = 0
    prompt_tokens: int = 0
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
    kv_cache_usage: float = 0.0
    kv_max_tokens: int = 0
    kv_tokens: int = 0
    kv_bytes: int = 0
    prefix_cache_tokens: int = 0
    prefix_cache_query_tokens: int = 0
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
    adapters: Mapping[str, AdapterStats] = field(default_factory=dict)
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
