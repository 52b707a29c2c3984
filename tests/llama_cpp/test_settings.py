"""What is refused before llama.cpp is needed, or because it is not there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub import AdapterHub
from adapterhub.errors import ConfigError
from adapterhub.llama_cpp.bindings import library


@pytest.mark.parametrize(
    "setting",
    [
        {"quantization": "nf4"},
        {"quantization": "int8"},
        {"compute_dtype": "bfloat16"},
        {"trust_remote_code": True},
        {"batch_invariant": True},
    ],
)
def test_settings_that_llama_cpp_does_not_have_are_refused(gguf_file: Path, setting: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"no {next(iter(setting))}="):
        AdapterHub.from_pretrained(gguf_file, engine="llama.cpp", **setting)


def test_four_bits_of_another_base_are_refused_with_what_to_do(gguf_file: Path):
    with pytest.raises(ConfigError, match="q4_k_m"):
        AdapterHub.from_pretrained(gguf_file.parent / "base", engine="llama.cpp", quantization="nf4")


def test_an_unknown_engine_is_refused(gguf_file: Path):
    with pytest.raises(ConfigError, match="engine"):
        AdapterHub.from_pretrained(gguf_file, engine="vllm")


def test_a_device_of_torch_is_refused(gguf_file: Path):
    with pytest.raises(ConfigError, match="cuda:0"):
        AdapterHub.from_pretrained(gguf_file, engine="llama.cpp", device="cuda:0")


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    yield
    library.cache_clear()


@pytest.mark.usefixtures("not_installed")
def test_without_llama_cpp_python_the_hint_installs_it(gguf_file: Path):
    with pytest.raises(ConfigError, match=r"adapterhub\[llama\]"):
        AdapterHub.from_pretrained(gguf_file, engine="llama.cpp")
