"""A hub over a real vLLM beside a hub in this process: the same base, adapters and answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub import AdapterHub, Generation
from tests.vllm.held_out import ROUNDING, answers, difference, held_out_requests, margin
from tests.vllm.real import real_vllm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # vLLM takes minutes to start

ROOT = Path(__file__).parents[2]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterHub]:
    folder = tmp_path_factory.mktemp("vllm")
    registry = shutil.copytree(ROOT / "adapters", folder / "adapters")  # blends are written there
    with real_vllm(folder / "log") as url, AdapterHub.connect(url, registry) as hub:
        yield hub


@pytest.fixture(scope="module")
def local() -> Iterator[AdapterHub]:
    settings = {"quantization": None, "compute_dtype": "float32", "kv_cache_mib": 64}
    with AdapterHub.from_pretrained("adapterhub-demo", ROOT / "adapters", **settings) as hub:
        yield hub


def both(remote: AdapterHub, local: AdapterHub, *arguments: Any, **options: Any) -> list[Generation]:
    return [hub.generate(*arguments, **options) for hub in (remote, local)]


def test_200_held_out_requests_are_answered_as_in_process(
    remote: AdapterHub, local: AdapterHub, capsys: pytest.CaptureFixture[str]
):
    asked = held_out_requests()
    assert len(asked) == 200
    pairs = list(zip(answers(remote, asked), answers(local, asked), strict=True))
    equal = [pair for pair in pairs if pair[0].token_ids == pair[1].token_ids]
    margins = [margin(*pair) for pair in pairs if pair not in equal]
    differences = [difference(*pair) for pair in equal]
    with capsys.disabled():
        print(
            f"\n{len(equal)} of {len(pairs)} answers are the same token ids; margins of the others: {margins}"
        )
        print(f"largest difference of log-probabilities: {max(differences):.1e} (bound: {ROUNDING:.1e})")
    assert all(one <= ROUNDING for one in margins)
    assert max(differences) <= ROUNDING


def test_log_probabilities_are_alike(remote: AdapterHub, local: AdapterHub):
    found, wanted = both(remote, local, "My printer shows error 41", "support", logprobs=3, max_tokens=12)
    ours, theirs = wanted.completions[0].logprobs, found.completions[0].logprobs
    assert ours
    assert theirs
    for one, other in zip(theirs, ours, strict=True):
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert list(one.top) == list(other.top)


@pytest.mark.parametrize("blend", ["json:0.7+support:0.3", "support:0.6+json:-0.2"])
def test_a_blend_is_answered_as_in_process(remote: AdapterHub, local: AdapterHub, blend: str):
    found, wanted = both(remote, local, "My printer shows error 41", blend, logprobs=3, max_tokens=24)
    assert found.adapter == wanted.adapter
    pair = found.completions[0], wanted.completions[0]
    is_equal = pair[0].token_ids == pair[1].token_ids
    assert (difference(*pair) if is_equal else margin(*pair)) <= ROUNDING


def test_log_probabilities_of_a_prompt_are_alike(remote: AdapterHub, local: AdapterHub):
    asked = {"prompt_logprobs": 3, "max_tokens": 2}
    found, wanted = both(remote, local, "My printer shows error 41", "support", **asked)
    theirs, ours = found.prompt_logprobs, wanted.prompt_logprobs
    assert ours
    assert theirs
    assert theirs[0] is ours[0] is None
    for one, other in zip(theirs[1:], ours[1:], strict=True):
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert list(one.top) == list(other.top)


@pytest.mark.parametrize(
    "output_format",
    [
        {"schema": SCHEMA},
        {"regex": r"[a-z]{3}-\d\d"},
        {"choices": ["yes", "no"]},
        {"grammar": 'start: "a" /b{1,3}c/'},
    ],
)
def test_output_formats_are_enforced_alike(
    remote: AdapterHub, local: AdapterHub, output_format: dict[str, Any]
):
    found, wanted = both(remote, local, "Ann is 7", "json", max_tokens=60, **output_format)
    assert found.completions[0].token_ids == wanted.completions[0].token_ids
    assert found.finish_reason == "stop"


@pytest.mark.parametrize(
    "sampling",
    [
        {"stop": ["e", "zz", "yy", "xx", "ww"]},
        {"min_tokens": 20, "max_tokens": 30},
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 1.0, "presence_penalty": 0.5},
        {"logit_bias": {20: 50.0}, "max_tokens": 8},
        {"suppress_tokens": [20, 21, 22]},
        {"ignore_eos": True, "max_tokens": 40},
    ],
    ids=lambda sampling: next(iter(sampling)),
)
def test_sampling_parameters_mean_the_same(remote: AdapterHub, local: AdapterHub, sampling: dict[str, Any]):
    found, wanted = both(
        remote, local, "Ann Lee from Oslo. Keys: name, city", "json", **{"max_tokens": 48} | sampling
    )
    assert found.completions == wanted.completions


def test_a_seed_makes_an_answer_reproducible(remote: AdapterHub):
    options = {"temperature": 1.0, "seed": 3, "n": 2, "max_tokens": 16}
    first, second = (remote.generate("hi", "support", **options) for _ in range(2))
    assert [one.token_ids for one in first.completions] == [one.token_ids for one in second.completions]
    assert first.completions[0].token_ids != first.completions[1].token_ids
