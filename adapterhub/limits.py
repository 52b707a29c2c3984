"""How much an engine may hold at a time."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from adapterhub.errors import ConfigError

_MIB = 1 << 20


@dataclass(frozen=True)
class EngineLimits:
    """Limits of an engine, under vLLM's names where it has them.

    Attributes:
        max_loras: Adapters in the model at once, and so different adapters in one batch.
        max_lora_rank: Highest rank that is served.
        max_cpu_loras: Adapters in host memory.
        adapter_cache_mib: Most memory that those in host memory take, MiB.
        max_batch_size: Answers that run at once.
        max_num_batched_tokens: Most tokens of one step: one for each running answer, the rest for prompts.
        kv_cache_mib: Memory for keys and values, MiB; a quarter of it keeps the beginnings of prompts.
        max_queue: Answers that may wait; beyond it requests are refused.
    """

    max_loras: int = 16
    max_lora_rank: int = 64
    max_cpu_loras: int = 64
    adapter_cache_mib: int = 2048
    max_batch_size: int = 32
    max_num_batched_tokens: int = 512
    kv_cache_mib: int = 1024
    max_queue: int = 1024

    def __post_init__(self) -> None:
        """Refuses what cannot work.

        Raises:
            ConfigError: A limit is below 1, or a step has not a token for every running answer.
        """
        low = [name for name, value in asdict(self).items() if value < 1]
        if low:
            raise ConfigError(f"The limits {', '.join(low)} must be at least 1.")
        if self.max_num_batched_tokens < self.max_batch_size:
            raise ConfigError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than a token for each of "
                f"max_batch_size={self.max_batch_size} answers.",
                hint="Raise max_num_batched_tokens or lower max_batch_size.",
            )

    @property
    def kv_cache_bytes(self) -> int:
        """Memory for keys and values."""
        return self.kv_cache_mib * _MIB

    @property
    def adapter_cache_bytes(self) -> int:
        """Memory for adapters on the host."""
        return self.adapter_cache_mib * _MIB
