"""Reads the tensors of an adapter's file one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import RawIOBase
from pathlib import Path

import torch

from adapterhub._files import os_errors_as
from adapterhub.errors import AdapterInvalidError
from adapterhub.peft_format.safetensors_header import TensorInfo

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_tensors(path: Path, header: Mapping[str, TensorInfo]) -> Iterator[tuple[str, torch.Tensor]]:
    """Reads tensors of an adapter's file.

    The file is not memory-mapped: loaded weights must not change when the file does.

    Args:
        path: The file.
        header: The tensors to read, in the order of their bytes.

    Yields:
        Name and tensor, in memory that the next one overwrites.

    Raises:
        AdapterInvalidError: The file cannot be read, or is too short.
    """
    memory = memoryview(bytearray(max((info.end - info.start for info in header.values()), default=0)))
    with (
        os_errors_as(AdapterInvalidError, f"{path.name} cannot be read"),
        path.open("rb", buffering=0) as file,
    ):
        for name, info in header.items():  # in the order of the bytes
            file.seek(info.start)
            data = memory[: info.end - info.start]
            if not _fill(data, file):
                raise AdapterInvalidError(f"{path.name} became shorter while it was read.")
            yield name, torch.frombuffer(data, dtype=_DTYPES[info.dtype]).view(info.shape)


def _fill(data: memoryview, file: RawIOBase) -> bool:
    """Reads a file into all of a block of memory; False if the file ends before. Linux reads 2 GiB at once at most."""
    position = 0
    while position < len(data) and (count := file.readinto(data[position:])):
        position += count
    return position == len(data)
