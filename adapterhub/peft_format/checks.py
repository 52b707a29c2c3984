"""Checks of an adapter, before a registry stores it and again when an engine loads it onto a base.

They need no torch. They refuse adapters that would load without an error and answer wrongly: missing tensors, other
shapes, modules that the base does not have, NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adapterhub._files import os_errors_as
from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError
from adapterhub.peft_format.config import (
    WEIGHTS_FILE,
    AdapterConfig,
    LoraParameter,
    LoraSettings,
    adapter_digest,
    parse_tensors,
)
from adapterhub.peft_format.safetensors_header import DTYPE_BYTES, TensorInfo, read_header

if TYPE_CHECKING:
    import numpy.typing as npt

# Rank 256 on every linear layer of a 70B model in float32 is 13 GB.
MAX_WEIGHTS_BYTES = 16 * 2**30
LARGE_RANK = 64
"""Higher ranks get a warning: slots have one rank, so one such adapter takes memory and time from all others."""
DTYPES = ("F64", "F32", "F16", "BF16")
_CHUNK_BYTES = 4 * 2**20
_BF16_EXPONENT = 0x7F80
# transformers' `base_model_prefix`, which checkpoints may omit: GPT-2's has `h.0`, the model `transformer.h.0`.
_BASE_MODEL_PREFIXES = ("model.", "transformer.", "gpt_neox.")


class LoraShape(NamedTuple):
    """The shape of LoRA on one module."""

    rank: int
    out_features: int
    in_features: int


@dataclass(frozen=True)
class AdapterInfo:
    """The metadata of an adapter that has passed every check that needs no base.

    Attributes:
        config: The adapter's config.
        modules: Module name in the base -> shape.
        digest: The adapter's digest, from `adapter_digest`.
        dtype: The weights' dtype; the first in alphabetical order if they differ.
        size_bytes: The size of the weights' file.
        warnings: Faults that do not keep the adapter from being served.
    """

    config: AdapterConfig
    modules: dict[str, LoraShape]
    digest: str
    dtype: str
    size_bytes: int
    warnings: tuple[str, ...]


def inspect_adapter(folder: Path) -> AdapterInfo:
    """Runs every check that needs no base on an adapter's folder.

    Args:
        folder: The folder with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        AdapterInvalidError: The files are damaged, or config and weights contradict each other.
        AdapterIncompatibleError: It is a kind of adapter that cannot be served.
    """
    config, weights = AdapterConfig.read(folder), folder / WEIGHTS_FILE
    header = read_header(weights, follow_links=False)
    with os_errors_as(AdapterInvalidError, f"{WEIGHTS_FILE} cannot be read"):
        return _inspected(config, weights, header)


def _inspected(config: AdapterConfig, weights: Path, header: Mapping[str, TensorInfo]) -> AdapterInfo:
    size = weights.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise AdapterInvalidError(
            f"{WEIGHTS_FILE} has {size:,} bytes; at most {MAX_WEIGHTS_BYTES:,} are accepted."
        )
    modules = check_shapes(config.settings, header)
    warnings = (*check_values(weights, header), *_rank_warnings(modules))
    dtype = min(tensor.dtype for tensor in header.values())
    return AdapterInfo(config, modules, adapter_digest(config.settings, weights), dtype, size, warnings)


def _rank_warnings(modules: Mapping[str, LoraShape]) -> tuple[str, ...]:
    rank = max(shape.rank for shape in modules.values())
    if rank <= LARGE_RANK:
        return ()
    return (
        f"its rank is {rank}: once it is loaded, every LoRA slot has that rank; an engine with a lower max_lora_rank "
        "refuses it",
    )


def check_digest(name: str, registered: str, found: str) -> None:
    """Checks that an adapter's files are those that were registered.

    Args:
        name: The adapter, for the message.
        registered: The digest on its card.
        found: The digest of its files, from `adapter_digest`.

    Raises:
        AdapterInvalidError: The digests differ.
    """
    if found != registered:
        raise AdapterInvalidError(
            f"The files of {name} have changed since they were registered: their digest differs.",
            hint="Restore them from a backup, or register what they are now as a new version.",
        )


def check_shapes(settings: LoraSettings, header: Mapping[str, TensorInfo]) -> dict[str, LoraShape]:
    """Checks that names and shapes of the weights agree with the config.

    Args:
        settings: The settings in `adapter_config.json`.
        header: The header of the weights' file, from `read_header`.

    Returns:
        Module name in the base -> shape.

    Raises:
        AdapterInvalidError: Tensors are missing, or shapes and ranks disagree.
        AdapterIncompatibleError: A tensor does not belong to LoRA on a linear layer.
    """
    modules = {name: _shape(name, parts, settings) for name, parts in parse_tensors(header).items()}
    if not modules:
        raise AdapterInvalidError("The adapter's file holds no LoRA weights.", hint="Save the adapter anew.")
    return modules


def _shape(module: str, parts: Mapping[LoraParameter, TensorInfo], settings: LoraSettings) -> LoraShape:
    expected = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if settings.use_dora else set())
    if parts.keys() != expected:
        differing = sorted(parts.keys() ^ expected)[0]
        state = "has no" if differing in expected else "has, though use_dora is off, a"
        raise _contradiction(f"module {module!r} {state} {differing}")
    for part, tensor in parts.items():
        if tensor.dtype not in DTYPES or 0 in tensor.shape:
            raise _contradiction(f"{part} of {module!r} is {tensor.dtype} of shape {tensor.shape}")
    match parts["lora_A"].shape, parts["lora_B"].shape:
        case (rank, in_features), (out_features, columns) if rank == columns == settings.rank(module):
            shape = LoraShape(rank, out_features, in_features)
        case a, b:
            raise _contradiction(
                f"rank {settings.rank(module)} in {module!r} does not agree with shapes {a} and {b}"
            )
    if settings.use_dora and parts["lora_magnitude_vector"].shape != (shape.out_features,):
        raise _contradiction(
            f"lora_magnitude_vector of {module!r} does not have shape ({shape.out_features},)"
        )
    return shape


def _contradiction(reason: str) -> AdapterInvalidError:
    return AdapterInvalidError(
        f"The adapter's config and weights contradict each other: {reason}.",
        hint="Take both files from the same training run.",
    )


def check_values(weights: Path, header: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """Checks that every weight is finite, reading the file in chunks.

    Returns:
        Warnings.

    Raises:
        AdapterInvalidError: A tensor holds NaN or infinity.
    """
    changes_base = False
    with weights.open("rb") as file:
        for name, tensor in header.items():
            for values in _chunks(file, tensor):
                if not _finite(values, tensor.dtype):
                    raise AdapterInvalidError(
                        f"The adapter's tensor {name!r} holds NaN or infinity.",
                        hint="Its training diverged: lower the learning rate, or take an earlier checkpoint.",
                    )
                changes_base = changes_base or (".lora_A." not in name and bool(values.any()))
    return () if changes_base else ("every lora_B is zero: the adapter does not change the base",)


def _chunks(file: Any, tensor: TensorInfo) -> Iterator[npt.NDArray[Any]]:
    import numpy as np

    dtype = np.dtype("<u2" if tensor.dtype == "BF16" else f"<f{DTYPE_BYTES[tensor.dtype]}")
    file.seek(tensor.start)
    for position in range(tensor.start, tensor.end, _CHUNK_BYTES):
        yield np.frombuffer(file.read(min(_CHUNK_BYTES, tensor.end - position)), dtype)


def _finite(values: npt.NDArray[Any], dtype: str) -> bool:
    import numpy as np

    if dtype == "BF16":  # numpy has no bfloat16; in NaN and infinity all exponent bits are set
        return not bool(np.any((values & _BF16_EXPONENT) == _BF16_EXPONENT))
    return bool(np.isfinite(values).all())


def check_fit(
    adapter: Mapping[str, LoraShape],
    base: Mapping[str, tuple[int, int]],
    settings: LoraSettings | None = None,
) -> None:
    """Checks that every module of an adapter is in the base, with the same shape.

    Args:
        adapter: Module name -> shape, from `check_shapes`.
        base: Module name -> (out_features, in_features): of a folder (`base_shapes`) or of a loaded model.
        settings: If given, every one of its target modules that the base has must have weights in the
            adapter.

    Raises:
        AdapterIncompatibleError: Modules are missing in the base, or have another shape.
        AdapterInvalidError: A target module has no weights.
    """
    known = {_without_prefix(module): shape for module, shape in base.items()}
    missing = [module for module in adapter if _without_prefix(module) not in known]
    if missing:
        count = "None" if len(missing) == len(adapter) else f"Only {len(adapter) - len(missing)}"
        raise AdapterIncompatibleError(
            f"{count} of the adapter's {len(adapter)} modules are in the base; {_listed(missing)} missing.",
            hint="The adapter was trained on another architecture; use the base that its config names.",
        )
    for module, shape in adapter.items():
        if (shape.out_features, shape.in_features) != (has := known[_without_prefix(module)]):
            raise AdapterIncompatibleError(
                f"The adapter does not fit the base: {module!r} has shape {has}, not {tuple(shape[1:])}.",
                hint="It was trained on a model of another size; use the base that its config names.",
            )
    if settings and isinstance(settings.target_modules, tuple):
        _check_targets(settings.target_modules, adapter, base)


def _check_targets(targets: tuple[str, ...], adapter: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    for target in targets:
        if _matches_any(target, base) and not _matches_any(target, adapter):
            raise _contradiction(f"the config targets {target[:200]!r}, for which there are no weights")


def _matches_any(target: str, modules: Mapping[str, Any]) -> bool:
    return any(module == target or module.endswith(f".{target}") for module in modules)


def _without_prefix(module: str) -> str:
    return next(
        (module[len(prefix) :] for prefix in _BASE_MODEL_PREFIXES if module.startswith(prefix)), module
    )


def _listed(modules: list[str]) -> str:
    named = ", ".join(repr(module) for module in modules[:3])
    if len(modules) > 3:
        return f"{named} and {len(modules) - 3} more are"
    return f"{named} {'is' if len(modules) == 1 else 'are'}"
