"""Parsing and validating the header of a safetensors file, without torch.

The format (https://huggingface.co/docs/safetensors): eight bytes of little-endian length, a JSON header of
that length that maps each tensor's name to dtype, shape and byte range, then the bytes. The checks are those of the
reference implementation; made on the header alone they cost no memory, and the error names the fault.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub._files import LFS_HEAD_BYTES, open_regular, os_errors_as, refuse_lfs_pointer
from adapterhub.errors import AdapterInvalidError

# The reference implementation allows 100 MB, which would take gigabytes as Python objects. 32 MB describe 200,000
# tensors, more than any adapter or shard of a base has.
MAX_HEADER_BYTES = 32 * 2**20
MAX_DIMENSIONS = 8
PREFIX_BYTES = 8
"""Before the header: its length."""

DTYPE_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes per element; dtypes narrower than a byte are not supported."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The metadata of one tensor.

    Attributes:
        dtype: In safetensors' notation: `"F32"`, `"BF16"`, ...
        shape: The dimensions.
        start: Offset of its first byte in the file.
        end: Offset after its last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path, *, follow_links: bool = True) -> dict[str, TensorInfo]:
    """Reads and validates the header of a safetensors file.

    Args:
        path: The file; only its header is read.
        follow_links: Whether it may be a symbolic link, as the files of a base in the hub's cache are.

    Returns:
        Tensor name -> metadata, ordered by offset.

    Raises:
        AdapterInvalidError: The file is missing or truncated, or its header is not valid for it.
    """
    with (
        os_errors_as(AdapterInvalidError, f"{path.name} cannot be read"),
        open_regular(path, follow_links=follow_links) as file,
    ):
        refuse_lfs_pointer(path.name, file.read(LFS_HEAD_BYTES))
        file.seek(0)
        start = file.read(PREFIX_BYTES)
        start += file.read(header_end(path, start) - PREFIX_BYTES)
        file_bytes = file.seek(0, 2)
    return parse_header(path, start, file_bytes)


def header_end(path: Path, start: bytes) -> int:
    """How many bytes of a safetensors file come before its tensors.

    Args:
        path: The file, for the message.
        start: At least its first `PREFIX_BYTES` bytes.

    Raises:
        AdapterInvalidError: It has fewer, or they are none of such a file.
    """
    size = struct.unpack("<Q", start[:PREFIX_BYTES])[0] if len(start) >= PREFIX_BYTES else 0
    if not 2 <= size <= MAX_HEADER_BYTES:
        raise _invalid(path, f"its header would be {size:,} bytes long")
    return int(PREFIX_BYTES + size)


def parse_header(path: Path, start: bytes, file_bytes: int) -> dict[str, TensorInfo]:
    """As `read_header`, of a file whose first bytes were read.

    Args:
        path: The file, for the message.
        start: Its first `header_end` bytes, or more.
        file_bytes: Its size.
    """
    end = header_end(path, start)
    if len(start) < end:
        raise _invalid(path, "the file ends inside its header")
    return _check_layout(path, _parse(path, start[PREFIX_BYTES:end]), end, file_bytes)


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, "its header is not valid JSON") from error
    if not isinstance(header, dict):
        raise _invalid(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON parsers differ on which of two equal keys counts.
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("a name occurs twice")
    return unique


def _check_layout(
    path: Path, header: dict[str, Any], data_start: int, file_bytes: int
) -> dict[str, TensorInfo]:
    tensors = {name: _tensor(path, name, entry, data_start) for name, entry in header.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    position = data_start
    for name, tensor in ordered.items():
        if tensor.start != position:
            raise _invalid(path, f"the bytes of {name[:200]!r} overlap others or leave a hole")
        position = tensor.end
    if position != file_bytes:
        what = "is cut short" if position > file_bytes else "goes on after its last tensor"
        raise _invalid(path, f"it {what}: {file_bytes:,} bytes where the header describes {position:,}")
    return ordered


def _tensor(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if (
            dtype in DTYPE_BYTES
            and len(shape) <= MAX_DIMENSIONS
            and all(type(size) is int and 0 <= size < 2**48 for size in shape)
            and 0 <= start <= end < 2**62
            and end - start == math.prod(shape) * DTYPE_BYTES[dtype]
        ):
            return TensorInfo(dtype, tuple(shape), data_start + start, data_start + end)
    raise _invalid(path, f"the entry of tensor {name[:200]!r} is not valid")


def _invalid(path: Path, reason: str) -> AdapterInvalidError:
    return AdapterInvalidError(
        f"{path.name} is not a valid safetensors file: {reason}.",
        hint="Copy or download it again, or save it anew with save_pretrained().",
    )
