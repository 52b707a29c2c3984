from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from adapterhub.errors import AdapterInvalidError
from adapterhub.peft_format.safetensors_header import MAX_HEADER_BYTES, read_header
from tests.registry.maker import values, write_raw, write_safetensors

ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def written(tmp_path: Path, header: Any, data: bytes = b"\0" * 8) -> Path:
    return write_raw(tmp_path / "x.safetensors", json.dumps(header).encode(), data)


def test_reads_what_the_reference_implementation_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0, 4), np.float16)}
    save_file(arrays, path, metadata={"format": "np"})
    header = read_header(path)
    assert {name: tensor.shape for name, tensor in header.items()} == {"a": (2, 3), "b": (0, 4)}
    tensor = header["a"]
    assert path.read_bytes()[tensor.start : tensor.end] == arrays["a"].tobytes()


def test_a_file_without_tensors_is_whole(tmp_path: Path) -> None:
    assert read_header(written(tmp_path, {}, b"")) == {}


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ([], "not a JSON object"),
        ({"a": 1}, "is not valid"),
        ({"a": {**ONE["a"], "dtype": "F33"}}, "is not valid"),
        ({"a": {**ONE["a"], "dtype": ["F32"]}}, "is not valid"),
        ({"a": {**ONE["a"], "shape": [-2]}}, "is not valid"),
        ({"a": {**ONE["a"], "shape": [True, 2]}}, "is not valid"),
        ({"a": {**ONE["a"], "shape": [3]}}, "is not valid"),
        ({"a": {**ONE["a"], "shape": [2**62, 2**62]}}, "is not valid"),
        ({"a": {**ONE["a"], "data_offsets": [8, 0]}}, "is not valid"),
        ({"a": {**ONE["a"], "data_offsets": [-8, 0]}}, "is not valid"),
        ({"a": {**ONE["a"], "data_offsets": [4, 12]}}, "overlap"),
        ({**ONE, "b": ONE["a"]}, "overlap"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "cut short"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "goes on"),
    ],
)
def test_invalid_headers(tmp_path: Path, header: Any, why: str) -> None:
    path = written(tmp_path, header)
    with pytest.raises(AdapterInvalidError, match=why):
        read_header(path)
    with pytest.raises(SafetensorError), safe_open(path, "np"):  # as the reference implementation does
        pass


def test_more_dimensions_than_any_tensor_has(tmp_path: Path) -> None:
    with pytest.raises(AdapterInvalidError, match="is not valid"):
        read_header(written(tmp_path, {"a": {**ONE["a"], "shape": [1] * 9 + [2]}}))


@pytest.mark.parametrize("length", [0, 1, 10**6, MAX_HEADER_BYTES + 1, 2**64 - 1])
def test_invalid_lengths(tmp_path: Path, length: int) -> None:
    with pytest.raises(AdapterInvalidError):
        read_header(write_raw(tmp_path / "x.safetensors", json.dumps(ONE).encode(), b"\0" * 8, length=length))


def test_a_name_that_occurs_twice(tmp_path: Path) -> None:
    entry = json.dumps(ONE["a"])
    path = write_raw(tmp_path / "x.safetensors", f'{{"a": {entry}, "a": {entry}}}'.encode(), b"\0" * 8)
    with pytest.raises(AdapterInvalidError):
        read_header(path)


def test_deeply_nested_json(tmp_path: Path) -> None:
    with pytest.raises(AdapterInvalidError):
        read_header(write_raw(tmp_path / "x.safetensors", b"[" * 200_000))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AdapterInvalidError, match="cannot be read"):
        read_header(tmp_path / "nothing.safetensors")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(AdapterInvalidError, match="not a regular file"):
            read_header(path)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {"a": values(2, 3), "b": values(4)})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(AdapterInvalidError):
            read_header(path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["F32", "BF16"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
ENTRIES = st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON})
HEADERS = (
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.text(max_size=8), ENTRIES | JSON, max_size=3).map(
        lambda value: json.dumps(value).encode()
    )
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(HEADERS, st.binary(max_size=64))
def test_random_bytes_are_refused_or_read_within_the_file(tmp_path: Path, header: bytes, data: bytes) -> None:
    for path in (
        write_raw(tmp_path / "framed.safetensors", header, data),
        write_raw(
            tmp_path / "long.safetensors", header, data, length=struct.unpack("<Q", (data + b"\0" * 8)[:8])[0]
        ),
    ):
        try:
            tensors = read_header(path)
        except AdapterInvalidError:
            continue
        assert all(tensor.end <= path.stat().st_size for tensor in tensors.values())
