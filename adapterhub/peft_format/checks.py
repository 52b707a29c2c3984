"""Checks of an adapter, before a registry stores it and again when an engine loads it.

They need no torch and no base. They refuse adapters that would load without an error and answer wrongly: missing
tensors, other shapes, NaN. `adapterhub.base.fit` has the checks against a base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from adapterhub._files import os_errors_as
from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError
from adapterhub.peft_format.config import (
    DTYPES,
    WEIGHTS_FILE,
    AdapterConfig,
    LoraParameter,
    LoraSettings,
    adapter_digest,
    copied_weights,
    further_tensors,
    parameter_owner,
    parse_tensors,
    saved_weights,
)
from adapterhub.peft_format.further_weights import FurtherWeights, contradiction
from adapterhub.peft_format.safetensors_header import DTYPE_BYTES, TensorInfo, read_header

if TYPE_CHECKING:
    import numpy.typing as npt

# Rank 256 on every linear layer of a 70B model in float32 is 13 GB.
MAX_WEIGHTS_BYTES = 16 * 2**30
LARGE_RANK = 64
"""Higher ranks get a warning: slots have one rank, so one such adapter takes memory and time from all others."""
LARGE_SLOT_WEIGHTS = 2**24
"""More weights than these beside LoRA on linear layers get a warning: each slot with them takes their memory."""
_CHUNK_BYTES = 4 * 2**20
_BF16_EXPONENT = 0x7F80


class LoraShape(NamedTuple):
    """The shape of LoRA on one module.

    Attributes:
        rank: The rank; for the experts of a mixture that of one of them.
        out_features: The number of rows of lora_B.
        in_features: The number of columns of lora_A.
        experts: How many times the rank the factors have, for an adapted parameter that holds a mixture's experts.
    """

    rank: int
    out_features: int
    in_features: int
    experts: int = 1


@dataclass(frozen=True)
class AdapterInfo:
    """The metadata of an adapter that has passed every check that needs no base.

    Attributes:
        config: The adapter's config.
        modules: Module name -> shape of LoRA on it.
        further: The modules that it changes in other ways.
        digest: The adapter's digest, from `adapter_digest`.
        dtype: The weights' dtype; the first in alphabetical order if they differ.
        size_bytes: The size of the weights' file.
        warnings: Faults that do not keep the adapter from being served.
    """

    config: AdapterConfig
    modules: dict[str, LoraShape]
    further: FurtherWeights
    digest: str
    dtype: str
    size_bytes: int
    warnings: tuple[str, ...]

    @property
    def max_rank(self) -> int:
        """The highest rank of its modules; 0 if it replaces weights only."""
        embeddings = (shape.rank for shape in self.further.embeddings.values())
        return max((*(shape.rank for shape in self.modules.values()), *embeddings), default=0)


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
    further = FurtherWeights.of(config.settings, header)
    modules = check_shapes(config.settings, header)
    unusual = (*_rank_warnings(modules), *_size_warnings(further, modules))
    warnings = (*check_values(weights, header, config.settings), *unusual)
    dtype = min(tensor.dtype for tensor in header.values())
    return AdapterInfo(
        config, modules, further, adapter_digest(config.settings, weights), dtype, size, warnings
    )


def _rank_warnings(modules: Mapping[str, LoraShape]) -> tuple[str, ...]:
    rank = max((shape.rank for shape in modules.values() if shape.experts == 1), default=0)
    if rank <= LARGE_RANK:
        return ()
    return (
        f"its rank is {rank}: once it is loaded, every LoRA slot has that rank; an engine with a lower max_lora_rank "
        "refuses it",
    )


def _size_warnings(further: FurtherWeights, modules: Mapping[str, LoraShape]) -> tuple[str, ...]:
    elements = slot_weights(further, modules)
    if elements < LARGE_SLOT_WEIGHTS:
        return ()
    names = [*further.names, *(module for module, shape in modules.items() if shape.experts > 1)]
    mib = 2 * elements / 2**20
    return (
        f"beside LoRA on linear layers it holds weights of {', '.join(map(repr, names[:3]))}: {mib:,.0f} MiB "
        f"of a LoRA slot in 16 bits, {2 * mib:,.0f} in 32; an engine with a lower max_slot_weights_mib refuses it",
    )


def slot_weights(further: FurtherWeights, modules: Mapping[str, LoraShape]) -> int:
    """The number of weights that an adapter holds in a slot of its own, beside LoRA on linear layers.

    Args:
        further: The modules that it changes in other ways than by LoRA.
        modules: The shapes of LoRA, from `check_shapes`; those of a mixture's experts count.
    """
    experts = (shape for shape in modules.values() if shape.experts > 1)
    return further.elements + sum(
        one.rank * one.experts * (one.out_features + one.in_features) for one in experts
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
        Module name -> shape.

    Raises:
        AdapterInvalidError: Tensors are missing, or shapes and ranks disagree.
        AdapterIncompatibleError: A tensor does not belong to LoRA.
    """
    modules = {name: _shape(name, parts, settings) for name, parts in parse_tensors(header).items()}
    if not modules and not further_tensors(header):
        raise AdapterInvalidError("The adapter's file holds no LoRA weights.", hint="Save the adapter anew.")
    for name in copied_weights(header).values():
        if (dtype := header[name].dtype) not in DTYPES:
            raise AdapterIncompatibleError(
                f"The adapter holds the tensor {name[:200]!r}, a weight of the base itself, as {dtype}.",
                hint="Train on a base in floating point, or leave the weight out of the file.",
            )
    return modules


def _shape(module: str, parts: Mapping[LoraParameter, TensorInfo], settings: LoraSettings) -> LoraShape:
    expected = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if settings.use_dora else set())
    if parts.keys() != expected:
        differing = sorted(parts.keys() ^ expected)[0]
        state = "has no" if differing in expected else "has, though use_dora is off, a"
        raise contradiction(f"module {module!r} {state} {differing}")
    for part, tensor in parts.items():
        if tensor.dtype not in DTYPES or 0 in tensor.shape:
            raise contradiction(f"{part} of {module!r} is {tensor.dtype} of shape {tensor.shape}")
    match parts["lora_A"].shape, parts["lora_B"].shape:
        case (rows, in_features), (out_features, columns) if rows == columns and (
            rank := _rank(module, rows, settings)
        ):
            shape = LoraShape(rank, out_features, in_features, rows // rank)
        case a, b:
            raise contradiction(
                f"rank {settings.rank(module)} in {module!r} does not agree with shapes {a} and {b}"
            )
    if settings.use_dora and parts["lora_magnitude_vector"].shape != (shape.out_features,):
        raise contradiction(
            f"lora_magnitude_vector of {module!r} does not have shape ({shape.out_features},)"
        )
    return shape


def _rank(module: str, rows: int, settings: LoraSettings) -> int | None:
    """The rank of a module with so many rows in lora_A; None if the settings do not allow them.

    The name of a mixture's module does not say which of its parameters is meant: only a base does. So it is the highest
    rank of those that may be.
    """
    owner = parameter_owner(module)
    if rows == settings.rank(module) and owner == module:
        return rows
    leaves = {target.rpartition(".")[2] for target in settings.target_parameters}
    parameters = (name for leaf in leaves if settings.targets(name := f"{owner}.{leaf}"))
    return max((rank for name in parameters if rows % (rank := settings.rank(name)) == 0), default=None)


def check_values(weights: Path, header: Mapping[str, TensorInfo], settings: LoraSettings) -> tuple[str, ...]:
    """Checks that every weight is finite, reading the file in chunks.

    Returns:
        Warnings.

    Raises:
        AdapterInvalidError: A tensor holds NaN or infinity.
    """
    copies = set(copied_weights(header).values()) - set(saved_weights(header, settings).values())
    changes_base = False
    with weights.open("rb") as file:
        for name, tensor in header.items():
            for values in _chunks(file, tensor):
                if not _finite(values, tensor.dtype):
                    raise AdapterInvalidError(
                        f"The adapter's tensor {name!r} holds NaN or infinity.",
                        hint="Its training diverged: lower the learning rate, or take an earlier checkpoint.",
                    )
                changes_base = changes_base or (
                    not name.endswith((".lora_A.weight", ".lora_embedding_A"))
                    and name not in copies
                    and bool(values.any())
                )
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
