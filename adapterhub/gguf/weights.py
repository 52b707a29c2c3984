"""The weights of a model on disk, in llama.cpp's names and order, read in blocks of rows."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from adapterhub.base.fingerprint import weight_files
from adapterhub.errors import ExportError
from adapterhub.gguf.architectures import Architecture
from adapterhub.gguf.hyperparameters import rope_tensors
from adapterhub.peft_format.safetensors_header import TensorInfo, read_header

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_BLOCK_ELEMENTS = 2**20
_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class StoredWeight:
    """A weight of a safetensors file.

    Attributes:
        name: llama.cpp's.
        shape: As llama.cpp multiplies: (out_features, in_features), or one dimension.
        file: The file.
        info: Where in it.
        transposed: Whether it is stored as (in_features, out_features).
        order: Which stored row comes at each place; None for the order as it is.
        offset: What is added.
    """

    name: str
    shape: tuple[int, ...]
    file: Path
    info: TensorInfo
    transposed: bool
    order: Any
    offset: float

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Its rows in llama.cpp's order, about a million weights at a time."""
        import numpy as np

        stored = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[self.info.dtype]
        with self.file.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # ends with the last array on it
        flat = np.frombuffer(mapped, stored, prod(self.info.shape), self.info.start)
        rows = flat.reshape(self.info.shape)
        rows = rows.T if self.transposed else rows
        count = max(1, _BLOCK_ELEMENTS // prod(self.shape[1:]))
        for start in range(0, len(rows), count):
            chosen = slice(start, start + count) if self.order is None else self.order[start : start + count]
            yield _float32(rows[chosen]) + np.float32(self.offset)


@dataclass(frozen=True)
class ComputedWeight:
    """A weight that follows from the settings.

    Attributes:
        name: llama.cpp's.
        shape: Its shape.
        value: Its values, in float32.
    """

    name: str
    shape: tuple[int, ...]
    value: Any

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """All of it."""
        yield self.value


Weight: TypeAlias = StoredWeight | ComputedWeight
"""One tensor of a GGUF file, whose `blocks` are its rows in float32, from the first to the last."""


def _float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    import numpy as np

    if values.dtype != np.uint16:
        return values.astype(np.float32, order="C")
    return (values.astype(np.uint32, order="C") << 16).view(
        np.float32
    )  # a bfloat16 is the upper half of a float32


def model_weights(folder: Path, architecture: Architecture) -> Sequence[Weight]:
    """The weights of a model on disk, for llama.cpp.

    Args:
        folder: With `config.json` and safetensors files in 16 or 32 bits.
        architecture: Its architecture.

    Raises:
        ExportError: A weight is stored in a form that is not read, or llama.cpp has no such weight.
        ConfigError: The folder's files cannot be read.
    """
    places = {name: (file, info) for file in weight_files(folder) for name, info in read_header(file).items()}
    found = architecture.layers.parameters_in(places)
    stored = [_stored(parameter, *places[tensor], architecture) for parameter, tensor in found.items()]
    computed = [
        ComputedWeight(name, value.shape, value) for name, value in rope_tensors(architecture).items()
    ]
    return [*(weight for weight in stored if weight), *computed]


def _stored(parameter: str, file: Path, info: TensorInfo, architecture: Architecture) -> StoredWeight | None:
    name = architecture.tensor_name(parameter)
    if name is None:
        return None
    if info.dtype not in _DTYPES:
        raise ExportError(
            f"The weight {parameter!r} is stored as {info.dtype}.",
            hint="Convert the model's 16-bit weights, not a quantised copy.",
        )
    transposed = architecture.is_transposed(parameter)
    shape = info.shape[::-1] if transposed else info.shape
    order = architecture.row_order(parameter)
    return StoredWeight(name, shape, file, info, transposed, order, architecture.offset(parameter))
