"""A tiny GGUF file and its adapters, served by llama.cpp and by our own engine side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.config import EngineLimits
from adapterhub.engine import BatchingEngine
from adapterhub.lora.request import StoredLoraRequest
from tests.engine.maker import adapter_settings, make_adapters, sources_of
from tests.tiny import make_base, make_gguf

LIMITS = EngineLimits(max_loras=3, max_batch_size=8, kv_cache_mib=16)


@pytest.fixture(scope="package", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTERHUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="package")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    return make_gguf(folder / "tiny.gguf", make_base(folder / "base"))


@pytest.fixture(scope="package")
def adapters(gguf_file: Path) -> dict[str, StoredLoraRequest]:
    """Adapters of every kind."""
    folder = gguf_file.parent
    return sources_of(make_adapters(folder / "adapters", folder / "base", adapter_settings("llama")))


@pytest.fixture(scope="package")
def ours(gguf_file: Path) -> Iterator[BatchingEngine]:
    """Our own engine on the file's 16-bit form."""
    from adapterhub.base.loading import load_base

    engine = BatchingEngine(load_base(gguf_file, quantization=None, compute_dtype="float32"), LIMITS)
    yield engine
    engine.close()


@pytest.fixture(scope="package")
def theirs(gguf_file: Path) -> Iterator[Any]:
    """llama.cpp on the file."""
    from adapterhub.llama_cpp import LlamaCppEngine, load_gguf_base

    engine = LlamaCppEngine(load_gguf_base(gguf_file), LIMITS)
    yield engine
    engine.close()
