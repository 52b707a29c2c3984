from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError
from adapterhub.peft_format import checks
from adapterhub.peft_format.checks import LoraShape, inspect_adapter
from tests.registry.maker import adapter_tensors, make_adapter, module_names, values

Q0, V0, Q1, V1 = module_names()
A, B = f"base_model.model.{Q0}.lora_A.weight", f"base_model.model.{Q0}.lora_B.weight"
DTYPES = ["F64", "F32", "F16", "BF16"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dora", [False, True])
def test_a_whole_adapter(tmp_path: Path, dtype: str, dora: bool) -> None:
    info = inspect_adapter(make_adapter(tmp_path / "a", dtype=dtype, use_dora=dora))
    assert info.modules == {name: LoraShape(2, 8 if "q_proj" in name else 4, 8) for name in (Q0, V0, Q1, V1)}
    assert info.dtype == dtype
    assert info.size_bytes == (tmp_path / "a/adapter_model.safetensors").stat().st_size
    assert info.warnings == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({A: None}, "has no lora_A"),
        ({B: None}, "has no lora_B"),
        ({A: values(3, 8)}, "rank 2"),
        ({A: values(3, 8), B: values(8, 3)}, "rank 2"),
        ({A: values(2, 4, 2)}, "rank 2"),
        ({A: values(16)}, "rank 2"),
        ({A: values(2, 0)}, r"of shape \(2, 0\)"),
        ({A: ("I8", (2, 8), b"\0" * 16)}, "is I8"),
        ({f"base_model.model.{Q0}.lora_magnitude_vector": values(8)}, "use_dora is off"),
    ],
)
def test_weights_that_contradict_the_config(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    tensors = {name: tensor for name, tensor in {**adapter_tensors(), **change}.items() if tensor}
    with pytest.raises(AdapterInvalidError, match=f"contradict each other.*{reason}") as caught:
        inspect_adapter(make_adapter(tmp_path / "a", tensors=tensors))
    assert Q0 in caught.value.message


@pytest.mark.parametrize("dtype", ["I8", "BOOL", "F8_E4M3", "I64"])
def test_a_copy_of_a_weight_in_another_kind_of_number(tmp_path: Path, dtype: str) -> None:
    data = bytes(8 * (8 if dtype == "I64" else 1))
    tensors = {**adapter_tensors(), "base_model.model.model.norm.weight": (dtype, (8,), data)}
    with pytest.raises(AdapterIncompatibleError, match=rf"a weight of the base itself, as {dtype}\."):
        inspect_adapter(make_adapter(tmp_path / "a", tensors=tensors))


def test_dora_without_magnitudes_or_with_too_few(tmp_path: Path) -> None:
    with pytest.raises(AdapterInvalidError, match="has no lora_magnitude_vector"):
        inspect_adapter(make_adapter(tmp_path / "a", tensors=adapter_tensors(), use_dora=True))
    tensors = {**adapter_tensors(dora=True), f"base_model.model.{Q0}.lora_magnitude_vector": values(7)}
    with pytest.raises(AdapterInvalidError, match=r"does not have shape \(8,\)"):
        inspect_adapter(make_adapter(tmp_path / "b", tensors=tensors, use_dora=True))


def test_ranks_follow_the_patterns(tmp_path: Path) -> None:
    tensors = {**adapter_tensors(), A: values(5, 8), B: values(8, 5)}
    folder = make_adapter(tmp_path / "a", tensors=tensors, rank_pattern={"layers.0.self_attn.q_proj": 5})
    assert inspect_adapter(folder).modules[Q0] == LoraShape(5, 8, 8)


def test_an_adapter_without_weights(tmp_path: Path) -> None:
    with pytest.raises(AdapterInvalidError, match="holds no LoRA weights"):
        inspect_adapter(make_adapter(tmp_path / "a", tensors={}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, -1])
def test_nan_and_infinity_are_found_wherever_they_are(
    tmp_path: Path, dtype: str, bad: float, where: int
) -> None:
    _, shape, data = values(2, 8, dtype=dtype)
    formats = {"F64": "<d", "F32": "<f", "F16": "<e"}
    one = struct.pack("<f", bad)[2:] if dtype == "BF16" else struct.pack(formats[dtype], bad)
    poisoned = one + data[len(one) :] if where == 0 else data[: -len(one)] + one
    tensors = {**adapter_tensors(dtype=dtype), A: (dtype, shape, poisoned)}
    with pytest.raises(AdapterInvalidError, match="NaN or infinity") as caught:
        inspect_adapter(make_adapter(tmp_path / "a", tensors=tensors))
    assert A in caught.value.message


def test_the_largest_finite_numbers_pass(tmp_path: Path) -> None:
    largest = struct.pack("<H", 0x7F7F) * 16
    tensors = {**adapter_tensors(dtype="BF16"), A: ("BF16", (2, 8), largest)}
    assert inspect_adapter(make_adapter(tmp_path / "a", tensors=tensors)).dtype == "BF16"


def test_values_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_CHUNK_BYTES", 16)
    _, shape, data = values(2, 8)
    folder = make_adapter(
        tmp_path / "a", tensors={**adapter_tensors(), A: ("F32", shape, data[:-4] + b"\0\0\xc0\x7f")}
    )
    with pytest.raises(AdapterInvalidError, match="NaN"):
        inspect_adapter(folder)
    assert inspect_adapter(make_adapter(tmp_path / "b")).warnings == ()


def test_an_adapter_that_has_learnt_nothing_is_noticed(tmp_path: Path) -> None:
    tensors = {
        name: (dtype, shape, b"\0" * len(data) if "lora_B" in name else data)
        for name, (dtype, shape, data) in adapter_tensors().items()
    }
    (warning,) = inspect_adapter(make_adapter(tmp_path / "a", tensors=tensors)).warnings
    assert "does not change the base" in warning


def test_weights_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MAX_WEIGHTS_BYTES", 100)
    with pytest.raises(AdapterInvalidError, match="at most 100"):
        inspect_adapter(make_adapter(tmp_path / "a"))
