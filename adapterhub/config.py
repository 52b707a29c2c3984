"""Settings of a hub: an argument wins over `ADAPTERHUB_*`, that over `adapterhub.yaml`, and that over the default."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import InitVar, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapterhub._files import read_regular, user_path
from adapterhub.errors import AdapterHubError, AdapterIncompatibleError, ConfigError, describe_validation

CONFIG_FILE = "adapterhub.yaml"
MAX_PRIORITY = 2**31 - 1
"""Bound of a request's priority, on both sides of 0."""
ENGINE_PATTERN = r"^(transformers|llama\.cpp|https?://\S+)$"
"""The engines of `HubConfig.engine`."""
_PREFIX = "ADAPTERHUB_"
_MIB = 1 << 20
_MAX_CONFIG_BYTES = _MIB
MAX_BLEND_RANK = 64
"""The maximum rank of a blend in a request, where `max_lora_rank` is not set."""
_URL_PATTERN = r"^[A-Za-z][A-Za-z0-9+.-]{1,15}://"
RegistryUrl = Annotated[str, Field(pattern=_URL_PATTERN)]
"""`s3://bucket/prefix`, `gs://bucket/prefix` or `hf://organisation/name`."""
_VLLM_NAMES = {"max_num_seqs": "max_batch_size"}


@dataclass(frozen=True)
class EngineLimits:
    """Limits of an engine, under vLLM's names where it has them.

    Attributes:
        max_loras: LoRA slots, and so different adapters in one batch.
        max_lora_rank: Maximum rank that is served; None serves every stored adapter (slots grow to the highest rank
            that was loaded) and blends of a rank up to 64.
        max_slot_weights_mib: Maximum memory of what the adapters in slots hold beside LoRA on linear layers, MiB: whole
            modules (`modules_to_save`), LoRA on embeddings, rows of tokens, a mixture's experts. One adapter that has
            more is refused; others wait for each other.
        max_cpu_loras: Maximum number of adapters in host memory.
        adapter_cache_mib: Maximum memory of the adapters in host memory, MiB.
        max_batch_size: Maximum number of sequences in one step; also accepted as vLLM's `max_num_seqs`.
        max_num_batched_tokens: Maximum number of tokens in one step: one for each decoding sequence, the rest for
            prefill.
        kv_cache_mib: Memory for keys, values and states, MiB; a quarter of it is for the prefix cache if there is one.
        max_queue: Maximum number of waiting sequences; beyond it requests are refused.
    """

    max_loras: int = 16
    max_lora_rank: int | None = None
    max_slot_weights_mib: int = 2048
    max_cpu_loras: int = 64
    adapter_cache_mib: int = 2048
    max_batch_size: int = 32
    max_num_batched_tokens: int = 512
    kv_cache_mib: int = 1024
    max_queue: int = 1024
    max_num_seqs: InitVar[int | None] = None

    def __post_init__(self, max_num_seqs: int | None) -> None:
        """Checks the limits.

        Raises:
            ConfigError: A limit is below 1, or a step has fewer tokens than sequences.
        """
        if max_num_seqs is not None:
            if self.max_batch_size not in (type(self).max_batch_size, max_num_seqs):
                raise ConfigError(_both("max_num_seqs"))
            object.__setattr__(self, "max_batch_size", max_num_seqs)
        low = [name for name, value in asdict(self).items() if value is not None and value < 1]
        if low:
            raise ConfigError(f"The limits {', '.join(low)} must be at least 1.")
        if self.max_num_batched_tokens < self.max_batch_size:
            raise ConfigError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is less than a token for each of "
                f"max_batch_size={self.max_batch_size} sequences.",
                hint="Raise max_num_batched_tokens or lower max_batch_size.",
            )

    def check_rank(self, rank: int, *, blend: bool) -> None:
        """Returns if an adapter of this rank is served.

        Raises:
            AdapterIncompatibleError: It is above the maximum rank.
        """
        limit = self.max_rank_of(blend=blend)
        if rank > limit:
            raise AdapterIncompatibleError(
                f"Its rank is {rank}, and the engine serves ranks up to {limit}.",
                hint="Raise max_lora_rank, or store it at a lower rank: a blend of this one part, method svd.",
            )

    def check_slot_weights(self, size_bytes: int) -> None:
        """Returns if an adapter may hold this much in its slot beside LoRA on linear layers.

        Raises:
            AdapterIncompatibleError: It is above the maximum.
        """
        if size_bytes > self.slot_weights_bytes:
            raise AdapterIncompatibleError(
                f"Its whole modules, embeddings and experts take {size_bytes / _MIB:,.0f} MiB of a LoRA slot, and the "
                f"engine gives {self.max_slot_weights_mib:,} to all of them.",
                hint="Raise max_slot_weights_mib, or merge the adapter into its base.",
            )

    def max_rank_of(self, *, blend: bool) -> float:
        """The maximum rank of an adapter; without a limit, requests for blends must not grow the slots at will."""
        if self.max_lora_rank is not None:
            return self.max_lora_rank
        return MAX_BLEND_RANK if blend else math.inf

    @property
    def slot_weights_bytes(self) -> int:
        """Memory of the adapters in slots beside LoRA on linear layers."""
        return self.max_slot_weights_mib * _MIB

    @property
    def kv_cache_bytes(self) -> int:
        """Memory for keys and values."""
        return self.kv_cache_mib * _MIB

    @property
    def adapter_cache_bytes(self) -> int:
        """Memory for adapters on the host."""
        return self.adapter_cache_mib * _MIB


class HubConfig(BaseModel):
    """The settings of a hub."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    base: str | None = None
    """The base: `adapterhub-demo`, a folder, a GGUF file or a hub id. Without it, the base that the registry's cards
    name."""
    registry: RegistryUrl | Path | None = None
    """The folder of adapters, or a URL such as `s3://bucket/prefix`. Without it, `./adapters` if there is one, else the
    user's data folder."""
    registry_refresh: float = Field(2.0, gt=0, allow_inf_nan=False)
    """Seconds between two looks for changes in a registry at a URL."""
    registry_cache_mib: int = Field(20_480, ge=1)
    """Maximum disk space for files that were downloaded from a registry at a URL, MiB; those in use stay."""
    revision: str | None = None
    """A branch, tag or commit, where `base` is a hub id."""
    engine: str = Field("transformers", pattern=ENGINE_PATTERN)
    """What computes: `transformers`, `llama.cpp`, or the URLs of vLLM servers, with commas between them."""
    quantization: Literal["auto", "nf4", "fp4", "int4", "int8", "int8_weight_only"] | None = "auto"
    """Quantisation of the base's linear layers; `none` leaves them unquantised. `auto` is `int4` on a CPU that torch
    has a 4-bit kernel for and bitsandbytes has not, else `nf4`; llama.cpp's is `int8`, and it has `none` besides."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype of activations; `auto` is float32 on a CPU, bfloat16 on a GPU. With `auto` a CPU with AVX512-BF16
    multiplies 4-bit weights in bfloat16, which is fast; `float32` is float32 throughout."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    trust_remote_code: bool = False
    """Run Python code from the base's repository."""
    generation_config: Literal["auto", "none"] = "auto"
    """`auto`: what neither a request nor a card sets about sampling is taken from the base's `generation_config.json`;
    `none`: it is not."""
    prove_base: bool = True
    """Before the first request, compare the engine's steps with the model's own forward pass on a short prompt. Without
    it the base loads a little faster, and one that the engine computes wrongly answers wrongly without a word."""
    batch_invariant: bool = False
    """Compute an answer bit for bit the same alone and in any company, whatever else is in the batch, wherever a prompt
    is cut into chunks, and whatever the prefix cache has of it. It costs speed: see `docs/serving.md`."""
    use_cuda_graph: bool = False
    """On a GPU, capture steps that decode in CUDA graphs, so that Python launches no kernels in them. Off until it has
    been measured on a GPU. What cannot be captured is computed as without it, which the log says."""
    async_scheduling: bool = False
    """With `use_cuda_graph`, queue a step on the GPU before the host has sampled the tokens of the one before, where
    all of them are greedy. Off until it has been measured on a GPU."""
    max_loras: int = Field(16, ge=1)
    """LoRA slots, and so different adapters in one batch."""
    max_lora_rank: int | None = Field(None, ge=1)
    """Maximum rank that is served. Without it every stored adapter is, and blends of a rank up to 64. Of vLLM servers,
    what they were started with as `--max-lora-rank`; blends are cut to it."""
    max_slot_weights_mib: int = Field(2048, ge=1)
    """Maximum memory of what the adapters in slots hold beside LoRA on linear layers, MiB: whole modules
    (`modules_to_save`), LoRA on embeddings, rows of tokens, a mixture's experts. One adapter that has more is refused;
    others wait for each other."""
    max_cpu_loras: int = Field(64, ge=1)
    """Adapters in host memory; the least recently used one is dropped."""
    adapter_cache_mib: int = Field(2048, ge=1)
    """Maximum memory of the adapters in host memory, MiB."""
    max_batch_size: int = Field(32, ge=1)
    """Maximum number of sequences in one step; also accepted as vLLM's `max_num_seqs`."""
    max_num_batched_tokens: int = Field(512, ge=1)
    """Maximum number of tokens in one step: one for each decoding sequence, the rest for prefill."""
    kv_cache_mib: int = Field(1024, ge=1)
    """Memory for the keys and values of running sequences and of the prefix cache, MiB."""
    max_queue: int = Field(1024, ge=1)
    """Maximum number of waiting sequences; beyond it requests are refused with a retryable error."""

    @model_validator(mode="before")
    @classmethod
    def _accept_vllm_names(cls, settings: Any) -> Any:
        return _canonical(settings) if isinstance(settings, Mapping) else settings

    @property
    def limits(self) -> EngineLimits:
        """The limits of the engine."""
        return EngineLimits(**self.model_dump(include={field.name for field in fields(EngineLimits)}))

    @classmethod
    def load(cls, folder: Path | None = None, **arguments: Any) -> Self:
        """Gathers the settings from a folder's `adapterhub.yaml`, the environment and arguments.

        Args:
            folder: Where `adapterhub.yaml` may be; the current folder if not given.
            **arguments: Fields of this class. One that is None counts as not given, but for `quantization`.

        Raises:
            ConfigError: An unknown setting or a value that is not valid.
        """
        given = {k: v for k, v in arguments.items() if v is not None or k == "quantization"}
        layers = (_from_file((folder or Path()) / CONFIG_FILE), _from_environment(cls), given)
        settings: dict[str, Any] = {}
        for layer in layers:
            settings.update(_canonical(layer))
        if settings.get("quantization") in ("none", ""):
            settings["quantization"] = None
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise ConfigError(
                f"The settings are not valid: {describe_validation(error, limit=None)}.",
                hint=f"Known settings: {', '.join(cls.model_fields)}.",
            ) from error


def is_url(location: str | Path) -> bool:
    """Whether a registry's location is a URL and not a folder."""
    return isinstance(location, str) and re.match(_URL_PATTERN, location) is not None


def registry_location(chosen: str | Path | None = None) -> str | Path:
    """Where the registry is: as chosen, `ADAPTERHUB_REGISTRY`, `./adapters`, or the user's data folder."""
    if location := chosen or os.environ.get(f"{_PREFIX}REGISTRY"):
        return location if is_url(location) else user_path(location, ConfigError)
    if Path("adapters").is_dir():
        return Path("adapters")
    from platformdirs import user_data_path

    return user_data_path("adapterhub") / "adapters"


def cache_folder(name: str) -> Path:
    """A folder for what can be made again: in `ADAPTERHUB_CACHE`, or else in the user's folder for caches.

    Args:
        name: Its name there.
    """
    from platformdirs import user_cache_path

    chosen = os.environ.get(f"{_PREFIX}CACHE")
    return (Path(chosen).expanduser() if chosen else user_cache_path("adapterhub")) / name


def _from_environment(config: type[BaseModel]) -> Mapping[str, str]:
    names = {name: f"{_PREFIX}{name.upper()}" for name in (*config.model_fields, *_VLLM_NAMES)}
    return {name: os.environ[variable] for name, variable in names.items() if os.environ.get(variable)}


def _canonical(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under our names."""
    for name, ours in _VLLM_NAMES.items():
        if name in settings and ours in settings:
            raise ConfigError(_both(name))
    return {_VLLM_NAMES.get(name, name): value for name, value in settings.items()}


def _both(vllm_name: str) -> str:
    return f"{vllm_name} and {_VLLM_NAMES[vllm_name]} mean the same; give one of them."


def _from_file(path: Path) -> Mapping[str, Any]:
    try:
        text = read_regular(path, _MAX_CONFIG_BYTES, follow_links=True)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror}.") from error
    except AdapterHubError as error:
        raise ConfigError(f"It is no settings file: {error.message}", hint=error.hint) from error
    from adapterhub._yaml import parse_yaml

    try:
        content = parse_yaml(text.decode())
    except ValueError as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise ConfigError(f"{path.name} is not valid YAML: {reason}.") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path.name} must hold settings as `name: value` lines.")
    return content or {}
