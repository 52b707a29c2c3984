"""Sampling defaults of the base's `generation_config.json`: what transformers generates with it, the hub does too."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub import AdapterHub, AdapterRegistry, SamplingParams
from adapterhub.base.loading import load_base
from adapterhub.engine import BatchingEngine
from adapterhub.engine.generation_config import default_sampling_params
from adapterhub.errors import ConfigError, InvalidRequestError
from adapterhub.langchain import huggingface_pipeline
from adapterhub.requests.options import RequestOptions

TEXT = "the quick brown fox one two"
TOKENS = 24


@contextmanager
def hub_with(base: Path, registry: Path, content: dict[str, Any], **settings: Any) -> Iterator[AdapterHub]:
    """A hub on a copy of a base that has another generation config; `folder` is that copy."""
    folder = registry.parent / "base"
    shutil.copytree(base, folder, dirs_exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **content}))
    with AdapterHub.from_pretrained(folder, registry, quantization=None, **settings) as hub:
        yield hub


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def by_transformers(folder: Path) -> list[int]:
    """The answer of transformers with the folder's own defaults; the file has no length."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids
    return model.generate(ids, max_new_tokens=TOKENS, pad_token_id=0)[0, ids.shape[1] :].tolist()


def answer(hub: AdapterHub, **options: Any) -> list[int]:
    return list(hub.generate(TEXT, None, raw=True, max_tokens=TOKENS, **options).completions[0].token_ids)


CONFIGS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.8},
    "suppress_tokens": {"suppress_tokens": list(range(200, 320))},
    "both, and greedy though a temperature is given": {
        "repetition_penalty": 0.5,
        "suppress_tokens": [5, 6],
        "temperature": 3.0,
        "top_p": 0.5,
    },
    "do_sample is false": {"do_sample": False, "temperature": 3.0, "top_k": 7},
    "a sample of one token": {"do_sample": True, "top_k": 1, "temperature": 0.6, "repetition_penalty": 1.4},
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_the_answer_is_that_of_transformers(tiny_base: Path, registry: Path, content: dict[str, Any]):
    with hub_with(tiny_base, registry, content) as hub:
        assert answer(hub) == by_transformers(registry.parent / "base")


def test_bad_words_are_never_generated_as_by_transformers(tiny_base: Path, registry: Path):
    with hub_with(tiny_base, registry, {}) as hub:
        plain = answer(hub)
    words = [plain[:1], plain[1:3], plain[3:6], [2]]  # the last is the end token, which cannot be a bad word
    with hub_with(tiny_base, registry, {"bad_words_ids": words}) as hub:
        without = answer(hub)
        assert (2,) not in hub.engine.default_sampling_params["bad_words_ids"]
        assert without == by_transformers(registry.parent / "base") != plain
        assert answer(hub, bad_words_ids=()) == plain
        assert answer(hub, bad_words_ids=words[:1])[0] != plain[0]


def test_request_over_card_over_base(tiny_base: Path, registry: Path, tiny_adapters: dict[str, Path]):
    content = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1}
    card = AdapterRegistry(registry).register("json", tiny_adapters["json"], base=tiny_base)
    AdapterRegistry(registry).update(card.ref, prompt={"generation": {"top_k": 5, "top_p": 0.8}})
    with hub_with(tiny_base, registry, content) as hub:

        def params(adapter: str | None, **options: Any) -> SamplingParams:
            return hub._preparer.prepare("Hi", adapter, RequestOptions(options, {})).request.sampling

        assert params(None) == SamplingParams(temperature=0.6, top_p=0.9, top_k=20, min_p=0.1)
        of_card = params("json", top_p=0.7)
        assert (of_card.temperature, of_card.top_p, of_card.top_k, of_card.min_p) == (0.6, 0.7, 5, 0.1)
        assert params("json", temperature=0).greedy
        # transformers' own argument takes the file's temperature, as there.
        assert huggingface_pipeline(hub, "base").pipeline._options({"do_sample": True})["temperature"] == 0.6


@pytest.mark.parametrize("setting", ["argument", "environment"])
def test_none_takes_no_defaults(
    tiny_base: Path, registry: Path, setting: str, monkeypatch: pytest.MonkeyPatch
):
    with hub_with(tiny_base, registry, {}) as hub:
        plain = answer(hub)
    given = {"generation_config": "none"} if setting == "argument" else {}
    if not given:
        monkeypatch.setenv("ADAPTERHUB_GENERATION_CONFIG", "none")
    content = {"repetition_penalty": 1.8, "suppress_tokens": plain[:2], "do_sample": True}
    with hub_with(tiny_base, registry, content, **given) as hub:
        assert hub.engine.default_sampling_params == {}
        assert answer(hub) == plain
    with pytest.raises(ConfigError, match="generation_config"):
        AdapterHub.from_pretrained(tiny_base, registry, generation_config="vllm")


def test_an_output_format_outweighs_banned_tokens(tiny_base: Path, registry: Path):
    with hub_with(tiny_base, registry, {"suppress_tokens": list(range(3, 320)), "do_sample": True}) as hub:
        assert hub.generate(TEXT, None, choices=["one", "two"], seed=0).text in ("one", "two")
        text = hub.generate(TEXT, None, schema={"type": "boolean"}, bad_words_ids=[[9], [10, 11]]).text
    assert text in ("true", "false")


def test_tokens_that_the_base_does_not_have(tiny_base: Path, registry: Path):
    content = {"suppress_tokens": [3, 100_000], "bad_words_ids": [[4], [5, 100_000]]}
    with hub_with(tiny_base, registry, content) as hub:
        defaults = dict(hub.engine.default_sampling_params)
        assert defaults == {"suppress_tokens": (3,), "bad_words_ids": ((4,),)}
        assert answer(hub)
        for wrong in ({"suppress_tokens": [100_000]}, {"bad_words_ids": [[3, 100_000]]}):
            with pytest.raises(InvalidRequestError, match="vocabulary"):
                answer(hub, **wrong)


def test_without_a_file_there_are_no_defaults(tiny_base: Path, registry: Path):
    folder = shutil.copytree(
        tiny_base, registry.parent / "base", ignore=shutil.ignore_patterns("generation_*")
    )
    engine = BatchingEngine(load_base(folder, quantization=None))
    assert engine.default_sampling_params == {}
    engine.close()


@pytest.mark.parametrize(
    ("config", "params"),
    [
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": 0.0}, {"temperature": 0.0}),
        ({"do_sample": None, "temperature": 0.7}, {}),
        ({"top_k": 50, "top_p": None}, {"top_k": 50}),
        ({"do_sample": False, "top_p": 0.8}, {"top_p": 0.8}),  # for a request that samples
        ({"max_new_tokens": 5, "no_repeat_ngram_size": 2, "num_beams": 4}, {}),
    ],
)
def test_what_counts_of_a_config(config: dict[str, Any], params: dict[str, Any]):
    assert default_sampling_params(config) == params


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", 0),
        ("top_p", "x"),
        ("top_k", 1.5),
        ("repetition_penalty", -1),
        ("repetition_penalty", float("nan")),
        ("suppress_tokens", 5),
        ("suppress_tokens", [-1]),
        ("bad_words_ids", [[]]),
        ("bad_words_ids", [5]),
    ],
)
def test_a_value_out_of_range_is_left_out_with_a_warning(
    name: str, value: object, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        assert default_sampling_params({name: value, "min_p": 0.2}) == {"min_p": 0.2}
    assert name in caplog.text
