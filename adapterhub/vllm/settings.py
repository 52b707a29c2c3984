"""The engine that a hub's settings describe, and the settings that have no meaning for it."""

from __future__ import annotations

from adapterhub.config import HubConfig
from adapterhub.errors import ConfigError
from adapterhub.registry import AdapterRegistry
from adapterhub.vllm.engine import VLLMEngine
from adapterhub.vllm.fleet import FleetLimits

_OWN_SETTINGS = frozenset(
    {
        "base",
        "registry",
        "registry_refresh",
        "registry_cache_mib",
        "revision",
        "engine",
        "generation_config",
        "max_batch_size",
        "max_cpu_loras",
        "max_lora_rank",
        "max_queue",
    }
)
_TAKES_OTHERS = {
    "quantization": "Start vLLM with --quantization.",
    "compute_dtype": "Start vLLM with --dtype.",
    "max_loras": "Start vLLM with --max-loras.",
    "max_num_batched_tokens": "Start vLLM with --max-num-batched-tokens.",
    "kv_cache_mib": "Start vLLM with --gpu-memory-utilization.",
    "batch_invariant": "Start vLLM with VLLM_BATCH_INVARIANT=1.",
}


def connect_engine(
    config: HubConfig, registry: AdapterRegistry, base: str | None, revision: str | None
) -> VLLMEngine:
    """Connects to the servers of `config.engine`.

    Args:
        config: The settings; `max_batch_size` bounds the requests that a server has at a time, `max_cpu_loras` the
            adapters that it has loaded, and `max_lora_rank` is its `--max-lora-rank`.
        registry: Whose adapters they serve.
        base: The base; None for what the servers were given.
        revision: A branch, tag or commit of its hub id.

    Raises:
        ConfigError: A setting was given that only an engine in this process has.
        AdapterHubError: As `VLLMEngine`.
    """
    _refuse_settings(config)
    given, default = config.model_fields_set, FleetLimits()
    limits = FleetLimits(
        max_in_flight=config.max_batch_size if "max_batch_size" in given else default.max_in_flight,
        max_adapters=config.max_cpu_loras if "max_cpu_loras" in given else default.max_adapters,
        max_lora_rank=config.max_lora_rank,
    )
    return VLLMEngine(
        config.engine,
        base,
        revision=revision,
        limits=limits,
        max_queue=config.max_queue,
        generation_config=config.generation_config,
        registry=registry,
    )


def _refuse_settings(config: HubConfig) -> None:
    for name in sorted(config.model_fields_set - _OWN_SETTINGS):
        value = getattr(config, name)
        if value != type(config).model_fields[name].default:
            raise ConfigError(
                f"A vLLM server as the engine takes no {name}={value!r}.",
                hint=_TAKES_OTHERS.get(name, "It is a setting of engines in this process; leave it out."),
            )
