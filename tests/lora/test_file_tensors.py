"""Reading tensors from an adapter's file."""

from __future__ import annotations

from io import BytesIO, RawIOBase
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapterhub.errors import AdapterInvalidError
from adapterhub.lora.file_tensors import _fill, read_tensors
from adapterhub.peft_format.safetensors_header import read_header


class _Short(RawIOBase):
    """A file that gives three bytes at a time, as Linux gives 2 GiB."""

    def __init__(self, content: bytes) -> None:
        self._file = BytesIO(content)

    def readinto(self, buffer) -> int:
        return self._file.readinto(memoryview(buffer)[:3])


def test_a_tensor_may_take_several_reads():
    data = bytearray(8)
    assert _fill(memoryview(data), _Short(b"abcdefghij"))
    assert data == b"abcdefgh"
    assert not _fill(memoryview(data), _Short(b"abcdefg"))


def test_tensors_are_read_one_by_one(tmp_path: Path):
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(5).bfloat16(), "c": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "f")
    header = read_header(tmp_path / "f")
    assert header.keys() == tensors.keys()
    for name, tensor in read_tensors(tmp_path / "f", header):
        assert torch.equal(tensor, tensors[name])
    with (tmp_path / "f").open("r+b") as file:
        file.truncate(max(info.end for info in header.values()) - 1)
    with pytest.raises(AdapterInvalidError, match="became shorter"):
        list(read_tensors(tmp_path / "f", header))
