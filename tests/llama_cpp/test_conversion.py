"""A base that is not a GGUF file: converted once, and served as our own engine does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub.config import EngineLimits, cache_folder
from adapterhub.demo import demo_registry_folder, demo_requests
from adapterhub.errors import ConfigError
from adapterhub.gguf.architectures import Architecture
from adapterhub.llama_cpp.conversion import gguf_of_folder
from tests.engine.maker import prompt_of, request, stored_request
from tests.tiny import ALL_LINEAR, make_adapter, make_base

LIMITS = EngineLimits(kv_cache_mib=8)


def test_a_base_is_converted_once_and_again_when_it_changes(tmp_path: Path):
    base = make_base(tmp_path / "base")
    architecture = Architecture.of_folder(base)
    file = gguf_of_folder(base, architecture, "f16")
    stamp = file.stat().st_mtime_ns
    assert gguf_of_folder(base, architecture, "f16").stat().st_mtime_ns == stamp
    eight = gguf_of_folder(base, architecture, "q8_0")
    assert eight.stat().st_size < 0.7 * file.stat().st_size
    make_base(tmp_path / "base", seed=1)
    again = gguf_of_folder(base, architecture, "f16")
    assert again != file
    assert not file.exists()  # what no base leads to any more is removed
    assert cache_folder("llama.cpp") in again.parents


def test_a_base_in_the_working_folder_has_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base, other = make_base(tmp_path / "base"), make_base(tmp_path / "other", seed=1)
    monkeypatch.chdir(base)
    file = gguf_of_folder(Path(), Architecture.of_folder(base), "f16")
    assert (
        gguf_of_folder(other, Architecture.of_folder(other), "f16") != file
    )  # which removes what is outdated
    assert gguf_of_folder(base, Architecture.of_folder(base), "f16") == file


def test_what_a_killed_conversion_has_left_is_removed_by_the_next(tmp_path: Path):
    base = make_base(tmp_path / "base")
    file = gguf_of_folder(base, Architecture.of_folder(base), "f16")
    left = file.parent.with_name(f".other-{0:016x}.{0:032x}")
    left.mkdir()
    (left / "model.gguf").touch()
    os.utime(left, (0, 0))  # long ago
    make_base(tmp_path / "base", seed=1)
    gguf_of_folder(base, Architecture.of_folder(base), "f16")
    assert not left.exists()


def test_a_base_with_a_damaged_index_is_refused(tmp_path: Path):
    base = make_base(tmp_path / "base")
    architecture = Architecture.of_folder(base)
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConfigError, match="base"):
        gguf_of_folder(base, architecture, "f16")


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gemma3", "phi3"])
def test_every_architecture_and_its_adapters_give_the_same_predictions(tmp_path: Path, kind: str):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make test-gguf)")
    from adapterhub.base.loading import load_base
    from adapterhub.engine import BatchingEngine
    from adapterhub.llama_cpp import LlamaCppEngine, load_gguf_base

    settings, targets = {}, ALL_LINEAR[kind]
    if (
        kind == "gemma3"
    ):  # llama.cpp scales attention by the head's width; its vision tower has the same names
        settings, targets = {"query_pre_attn_scalar": 16}, rf".*language_model.*\.({'|'.join(targets)})"
    base = make_base(tmp_path / kind, kind, **settings)
    folder = make_adapter(tmp_path / "adapter", base, target_modules=targets, use_rslora=True)
    own = BatchingEngine(load_base(base, quantization=None, compute_dtype="float32"), LIMITS)
    engine = LlamaCppEngine(load_gguf_base(base, file_type="f16"), LIMITS)
    seen = set()
    for adapter in (None, stored_request("one", folder)):
        one = request(prompt_of(1, 40), adapter, max_tokens=1, logprobs=5)
        (wanted,), (got,) = (each.generate([one])[0][0].logprobs or () for each in (own, engine))
        assert got.token_id == wanted.token_id
        assert {token: got.top[token] for token in wanted.top} == pytest.approx(dict(wanted.top), abs=0.02)
        seen.add(wanted.logprob)
    assert len(seen) == 2
    own.close()
    engine.close()


def test_the_demo_s_requests_are_answered_as_by_our_own_engine():
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make test-gguf)")
    registry = AdapterRegistry(demo_registry_folder())
    settings = {"quantization": None, "kv_cache_mib": 64}
    with (
        AdapterHub.from_pretrained("adapterhub-demo", registry.root, engine="llama.cpp", **settings) as hub,
        AdapterHub.from_pretrained(
            "adapterhub-demo", registry.root, compute_dtype="float32", **settings
        ) as own,
    ):
        for asked in demo_requests():
            answers = [
                each.generate(
                    list(asked.messages), asked.adapter, tools=asked.tools, temperature=0, max_tokens=60
                )
                for each in (hub, own)
            ]
            assert answers[0].text == answers[1].text
