"""Models that treat long texts otherwise: windows of attention, and rotary factors of short and of long texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine import BatchingEngine
from tests.engine.maker import prompt_of, request
from tests.tiny import make_base

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make test-gguf)")

from adapterhub.llama_cpp import LlamaCppEngine, load_gguf_base

LIMITS = EngineLimits(kv_cache_mib=8, max_batch_size=2)
LONGROPE = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "short_factor": [1.0 + index for index in range(8)],
        "long_factor": [9.0 + index for index in range(8)],
    },
}


def gap(prompt: list[int], ours: BatchingEngine, theirs: LlamaCppEngine) -> float:
    """The greatest difference of the log-probabilities of the next token."""
    one = request(prompt, max_tokens=1, logprobs=5)
    (wanted,), (got,) = (each.generate([one])[0][0].logprobs or () for each in (ours, theirs))
    assert wanted.top.keys() == got.top.keys()
    return max(abs(wanted.top[token] - got.top[token]) for token in wanted.top)


@pytest.mark.parametrize(
    ("kind", "settings", "length"),
    [
        ("phi3", LONGROPE, 64),
        ("mistral", {"sliding_window": 32}, 32),
        ("phi3", {"sliding_window": 32}, 32),
    ],
)
def test_texts_are_as_long_as_llama_cpp_computes_them(
    tmp_path: Path, kind: str, settings: dict[str, Any], length: int
):
    base = make_base(tmp_path / "base", kind, **settings)
    theirs = LlamaCppEngine(load_gguf_base(base, file_type="f16"), LIMITS)
    ours = BatchingEngine(load_base(base, quantization=None, compute_dtype="float32"), LIMITS)
    assert theirs.context_length == length
    assert gap(prompt_of(1, length - 1), ours, theirs) < 0.02
    ours.close()
    theirs.close()


def test_a_cached_prompt_whose_window_is_gone_is_computed_again(tmp_path: Path):
    """llama.cpp gives away the memory of tokens that a sequence's own end has left behind."""
    base = make_base(tmp_path / "base", "gemma3", query_pre_attn_scalar=16, sliding_window=16)
    theirs = LlamaCppEngine(load_gguf_base(base, file_type="f16"), LIMITS)
    ours = BatchingEngine(load_base(base, quantization=None, compute_dtype="float32"), LIMITS)
    before = theirs.stream(request(prompt_of(3, 30), max_tokens=100))
    next(before)
    prompt = prompt_of(1, 200)
    theirs.generate([request(prompt, max_tokens=1)])
    before.close()  # what follows fills its place, and then that of the prompt's beginning
    theirs.generate([request(prompt_of(2, 31), max_tokens=220)])
    for length in (60, 40, 200):
        assert gap([*prompt[:length], *prompt_of(length, 5)], ours, theirs) < 0.02
    hits = theirs.stats().prefix_cache_hit_tokens
    assert gap(prompt, ours, theirs) < 0.02
    assert theirs.stats().prefix_cache_hit_tokens == hits + 199
    ours.close()
    theirs.close()
