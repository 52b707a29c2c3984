"""Streams the weights of a model into safetensors files: as they stand, or computed a block of rows at a time.

Memory holds a block of rows, whatever the size of a weight. Only GPT-2's transposed layers are read as a whole.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import torch

from adapterhub.errors import ExportError
from adapterhub.export.round_trip import RoundTrip, StoredWeight
from adapterhub.export.weight_change import LoadedChange, WeightChange
from adapterhub.peft_format.safetensors_header import DTYPE_BYTES, TensorInfo, read_header

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
"""The dtypes in floating point, in safetensors' notation."""

_CHUNK_BYTES = 8 * 2**20
_BLOCK_ELEMENTS = 2**20
# With a multiple of 64 rows a product has the bits of the whole product, and 4-bit blocks end where rows do.
_ROW_STEP = 64


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write.

    Attributes:
        name: Its name in the file.
        file: The base's file that it comes from.
        info: Its place there.
        dtype: The dtype to write, in safetensors' notation.
        change: What adapters change about it.
        round_trip: How training stored it, if it is to be as it was there.
        transposed: It is stored as (in_features, out_features).
    """

    name: str
    file: Path
    info: TensorInfo
    dtype: str
    change: WeightChange | None = None
    round_trip: RoundTrip | None = None
    transposed: bool = False

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are those in the base's file."""
        return self.change is None and self.round_trip is None and self.dtype == self.info.dtype

    @property
    def size_bytes(self) -> int:
        """Its size when written."""
        return math.prod(self.info.shape) * DTYPE_BYTES[self.dtype]


def shard_header(tensors: tuple[OutputTensor, ...]) -> bytes:
    """The header of a file with these tensors; that of the base's file where nothing about it has changed."""
    files = {tensor.file for tensor in tensors}
    if len(files) == 1:
        source = read_header(file := files.pop())
        if [(t.name, t.dtype, t.info) for t in tensors] == [(n, i.dtype, i) for n, i in source.items()]:
            with file.open("rb") as opened:
                length = opened.read(8)
                return length + opened.read(int.from_bytes(length, "little"))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        end = position + tensor.size_bytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.info.shape,
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for aligned tensors
    return len(text).to_bytes(8, "little") + text


def write_shard(path: Path, tensors: tuple[OutputTensor, ...], wrote: Callable[[int], None]) -> str:
    """Writes one file.

    Args:
        path: The new file.
        tensors: In the order of their bytes.
        wrote: Called with the number of bytes of each write.

    Returns:
        The sha256 of its content, as hexadecimal digits.

    Raises:
        ExportError: A value does not fit into its dtype, or a base's file has become shorter.
        OSError: It cannot be written.
    """
    digest = hashlib.sha256()
    with path.open("xb") as target:
        for data in _content(tensors):
            digest.update(data)
            wrote(target.write(data))
    return digest.hexdigest()


def _content(tensors: tuple[OutputTensor, ...]) -> Iterator[bytes | memoryview]:
    yield shard_header(tensors)
    for tensor in tensors:
        with tensor.file.open("rb") as source:
            yield from _copied(tensor, source) if tensor.is_copy else _computed(tensor, source)


def _copied(tensor: OutputTensor, source: BufferedReader) -> Iterator[bytes]:
    source.seek(tensor.info.start)
    for position in range(tensor.info.start, tensor.info.end, _CHUNK_BYTES):
        size = min(_CHUNK_BYTES, tensor.info.end - position)
        if len(data := source.read(size)) < size:
            raise _shorter()
        yield data


def _computed(tensor: OutputTensor, source: BufferedReader) -> Iterator[memoryview]:
    rows = _Rows.of(tensor, source)
    every = (rows.read(block) for block in rows.blocks())
    stored = tensor.round_trip.store(every) if tensor.round_trip else None
    change = tensor.change.load(transposed=tensor.transposed) if tensor.change else None
    written = torch.empty(tensor.info.shape, dtype=DTYPES[tensor.dtype]) if tensor.transposed else None
    for block in rows.blocks():
        computed = _rounded(tensor, _block(rows, block, stored, change))
        if written is None:
            yield computed.view(torch.uint8).numpy().data
        else:
            written.T[block] = computed
    if written is not None:
        yield written.view(torch.uint8).numpy().data


def _block(
    rows: _Rows, block: slice, stored: StoredWeight | None, change: LoadedChange | None
) -> torch.Tensor:
    values = rows.read(block) if stored is None else stored.rows(block.start, rows.count(block), rows.columns)
    return change.merge(values.float(), block) if change else values


def _rounded(tensor: OutputTensor, values: torch.Tensor) -> torch.Tensor:
    rounded = values.to(DTYPES[tensor.dtype]).contiguous()
    if rounded.numel() and not all(extreme.isfinite() for extreme in torch.aminmax(rounded)):
        what = f"merged weight of {tensor.change.module!r}" if tensor.change else f"weight {tensor.name!r}"
        raise ExportError(
            f"The {what} does not fit into {DTYPES[tensor.dtype]}.",
            hint="The adapter's weights are too large; it may have diverged in training."
            if tensor.change
            else "Choose bfloat16 or float32, which have a larger range.",
        )
    return rounded


@dataclass(frozen=True)
class _Rows:
    """The rows of a tensor in a file, as (out_features, in_features); those of its matrices if it has several."""

    source: BufferedReader
    info: TensorInfo
    total: int
    columns: int
    whole: torch.Tensor | None

    @classmethod
    def of(cls, tensor: OutputTensor, source: BufferedReader) -> _Rows:
        if tensor.transposed:
            columns, total = tensor.info.shape
            whole = _read(source, tensor.info, tensor.info.start, tensor.info.end).view(columns, total).T
            return cls(source, tensor.info, total, columns, whole)
        *rows, columns = tensor.info.shape or (1,)
        return cls(source, tensor.info, math.prod(rows), columns, None)

    def blocks(self) -> Iterator[slice]:
        step = max(1, _BLOCK_ELEMENTS // max(1, self.columns * _ROW_STEP)) * _ROW_STEP
        return (slice(start, min(start + step, self.total)) for start in range(0, self.total, step))

    def count(self, block: slice) -> int:
        count: int = block.stop - block.start
        return count

    def read(self, block: slice) -> torch.Tensor:
        """The rows of a block, in their own dtype."""
        if self.whole is not None:
            return self.whole[block]
        size = self.columns * DTYPE_BYTES[self.info.dtype]
        start = self.info.start + block.start * size
        data = _read(self.source, self.info, start, start + self.count(block) * size)
        return data.view(self.count(block), self.columns)


def _read(source: BufferedReader, info: TensorInfo, start: int, end: int) -> torch.Tensor:
    data = torch.empty(end - start, dtype=torch.uint8)
    source.seek(start)
    if source.readinto(data.numpy().data) < end - start:
        raise _shorter()
    return data.view(DTYPES[info.dtype])


def _shorter() -> ExportError:
    return ExportError(
        "A weight file became shorter while it was read.", hint="Do not change the base meanwhile."
    )
