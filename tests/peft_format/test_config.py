from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.errors import AdapterHubError, AdapterIncompatibleError, AdapterInvalidError
from adapterhub.peft_format.config import (
    AdapterConfig,
    LoraSettings,
    adapter_digest,
    parse_tensor_name,
    parse_tensors,
)
from adapterhub.peft_format.safetensors_header import read_header
from tests.registry.maker import adapter_tensors, make_adapter, module_names, write_safetensors

Q0, V0, Q1, V1 = module_names()
LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}


def parsed(**config: Any) -> AdapterConfig:
    return AdapterConfig.parse(json.dumps({**LORA, **config}).encode())


def test_rank_and_scaling_without_patterns() -> None:
    settings = parsed().settings
    assert settings.rank(Q0) == 8
    assert settings.scaling(Q0) == 2.0
    assert parsed(use_rslora=True).settings.scaling(Q0) == 16 / math.sqrt(8)


def test_the_first_pattern_that_matches_the_end_of_the_name_counts() -> None:
    settings = parsed(
        rank_pattern={"layers.1.self_attn.q_proj": 4, "q_proj": 2, "self_attn": 99},
        alpha_pattern={r"^model\.layers\.\d+\..*v_proj": 3},
    ).settings
    assert [settings.rank(module) for module in (Q0, V0, Q1, V1)] == [2, 8, 4, 8]
    assert [settings.scaling(module) for module in (Q0, V0)] == [8.0, 3 / 8]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_computes_the_same_ranks_and_scalings(tmp_path: Path, rslora: bool) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tests import tiny

    base = tiny.make_base(tmp_path / "base")
    # In alphabetical order: PEFT writes them so, and then goes by the order in the file.
    patterns = {"0.self_attn.k_proj": 6, "[jk]_proj": 5, "^model.layers.0.self_attn.q_proj": 3}
    folder = tiny.make_adapter(
        tmp_path / "adapter",
        base,
        target_modules="all-linear",
        use_rslora=rslora,
        rank_pattern=patterns,
        alpha_pattern={r".*\.down_proj": 7, "layers.0.self_attn.k_proj": 1},
    )
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    settings = AdapterConfig.read(folder).settings
    layers = {
        name.removeprefix("base_model.model."): m for name, m in model.named_modules() if hasattr(m, "lora_A")
    }
    assert {settings.rank(name) for name in layers} == {3, 4, 5, 6}
    for name, layer in layers.items():
        assert settings.rank(name) == layer.r["default"]
        assert settings.scaling(name) == pytest.approx(layer.scaling["default"], rel=1e-12)
    assert parse_tensors(read_header(folder / "adapter_model.safetensors")).keys() == layers.keys()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"peft_type": "XLORA"}, "XLORA"),
        ({"peft_type": None}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "activated"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "loftq"}, "loftq"),
    ],
)
def test_kinds_that_cannot_be_served_are_named(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(AdapterIncompatibleError, match=reason) as caught:
        parsed(**config)
    assert caught.value.hint


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
        {"trainable_token_indices": [1, 2]},
        {"trainable_token_indices": {"embed_tokens": [1, 2]}},
    ],
)
def test_kinds_that_can_be_served(config: dict[str, Any]) -> None:
    assert parsed(**config).settings.r == 8


@pytest.mark.parametrize(
    "config",
    [
        {"r": 0},
        {"r": "many"},
        {"lora_alpha": math.inf},
        {"lora_alpha": math.nan},
        {"rank_pattern": {"q_proj": -1}},
        {"rank_pattern": ["q_proj"]},
        {"target_modules": {"q_proj": 1}},
        {"rank_pattern": {"(": 2}},
        {"rank_pattern": {"(a+)+$": 2}},
        {"alpha_pattern": {"(a|b|ab)*c": 2}},
        {"alpha_pattern": {".*.*.*x": 2}},
        {"alpha_pattern": {"a?" * 30 + "a" * 30: 2}},
        {"alpha_pattern": {"(a|a)" * 25 + "b": 2}},
        {"alpha_pattern": {"(?:a|a)(?:a|a)": 2}},
        {"alpha_pattern": {r"(a)\1": 2}},
        {"rank_pattern": {f"[ab]_{number}": 2 for number in range(65)}},
        {"alpha_pattern": {"(?=a)a": 2}},
        {"alpha_pattern": {"x" * 300: 2}},
    ],
)
def test_values_that_are_wrong(config: dict[str, Any]) -> None:
    with pytest.raises(AdapterInvalidError, match=r"adapter_config\.json has a wrong value"):
        parsed(**config)


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "^model.layers.0.self_attn.q_proj",
        r".*\.layers\.\d+\.mlp",
        "(q|k)_proj$",
        "(?:q|k)_proj",
        "[qkv]_proj",
    ],
)
def test_patterns_as_people_write_them(pattern: str) -> None:
    assert parsed(rank_pattern={pattern: 3}).settings.rank_pattern == {pattern: 3}


def test_a_rank_for_every_module_as_eva_finds_them() -> None:
    ranks = {f"model.layers.{layer}.self_attn.q_proj": 1 + layer % 7 for layer in range(500)}
    settings = parsed(rank_pattern=ranks).settings
    assert [settings.rank(module) for module in ranks] == list(ranks.values())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_config(text: bytes) -> None:
    with pytest.raises((AdapterInvalidError, AdapterIncompatibleError)):
        AdapterConfig.parse(text)


@given(
    st.binary(max_size=100)
    | st.dictionaries(st.text(), st.text() | st.integers()).map(lambda d: json.dumps(d).encode())
)
def test_any_bytes_are_a_config_or_a_clear_error(text: bytes) -> None:
    with pytest.raises(AdapterHubError):
        AdapterConfig.parse(text)


def test_the_config_names_its_base() -> None:
    config = parsed(base_model_name_or_path="org/base", revision="abc", target_modules=["v", "q"])
    assert (config.base_name, config.base_revision) == ("org/base", "abc")
    assert config.settings.target_modules == ("q", "v")
    assert parsed(base_model_name_or_path="").base_name is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"base_model.model.{Q0}.lora_A.weight", (Q0, "lora_A")),
        (f"base_model.model.{Q0}.lora_B.weight", (Q0, "lora_B")),
        (f"base_model.model.{Q0}.lora_magnitude_vector", (Q0, "lora_magnitude_vector")),
        (f"base_model.model.{Q0}.lora_magnitude_vector.weight", (Q0, "lora_magnitude_vector")),
        ("base_model.model.lm_head.lora_A.weight", ("lm_head", "lora_A")),
    ],
)
def test_tensor_names(name: str, expected: tuple[str, str]) -> None:
    assert parse_tensor_name(name) == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("base_model.model.lm_head.weight", "a weight of the base itself"),
        ("base_model.model.score.modules_to_save.weight", "a weight of the base itself"),
        (f"base_model.model.{Q0}.lora_B.bias", "no part of LoRA"),
        (f"base_model.model.{Q0}.lora_E", "no part of LoRA"),
        (f"{Q0}.lora_A.weight", "without PEFT's prefix"),
        (f"base_model.model.{Q0}.lora_A.default.weight", "as in a live model"),
        (f"base_model.model.{Q0}.lora_magnitude_vector.default.weight", "as in a live model"),
        (f"{Q0}.lora_a", "mlx-lm"),
        ("../../etc/passwd", "no part of LoRA"),
        (f"base_model.model.{'x' * 300}.lora_A.weight", "no part of LoRA"),
        ("prompt_embeddings", "no part of LoRA"),
    ],
)
def test_tensors_that_are_something_else(name: str, reason: str) -> None:
    with pytest.raises(AdapterIncompatibleError, match=reason):
        parse_tensor_name(name)


@given(st.text())
def test_any_tensor_name_is_read_or_refused(name: str) -> None:
    with pytest.raises(AdapterIncompatibleError):
        parse_tensor_name(name)


def test_the_digest_is_that_of_the_arithmetic(tmp_path: Path) -> None:
    def digest(folder: str, **config: Any) -> str:
        path = make_adapter(tmp_path / folder, **config)
        return adapter_digest(AdapterConfig.read(path).settings, path / "adapter_model.safetensors")

    same = digest("a")
    assert same.startswith("sha256:")
    assert digest("b", base_model_name_or_path="/elsewhere", inference_mode=True, lora_dropout=0.1) == same
    assert digest("c", target_modules=["v_proj", "q_proj"]) == same
    assert digest("i", ensure_weight_tying=True) == same  # without modules_to_save it changes nothing
    changed = {
        digest("d", seed=7),
        digest("e", lora_alpha=8),
        digest("f", use_rslora=True),
        digest("g", alpha_pattern={"q_proj": 1, "v_proj": 2}),
        digest("h", alpha_pattern={"v_proj": 2, "q_proj": 1}),  # the order decides which pattern comes first
        digest("j", modules_to_save=["lm_head"]),
        digest("k", modules_to_save=["lm_head"], ensure_weight_tying=True),
        digest("l", trainable_token_indices=[1, 2]),
    }
    assert len(changed | {same}) == 9


def test_settings_survive_their_own_json() -> None:
    settings = parsed(rank_pattern={"q_proj": 3}, target_modules=r".*\.q_proj").settings
    assert LoraSettings.model_validate_json(settings.model_dump_json()) == settings


def test_tensors_are_sorted_by_module(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", adapter_tensors(dora=True))
    modules = parse_tensors(read_header(path))
    assert set(modules) == {Q0, V0, Q1, V1}
    assert set(modules[Q0]) == {"lora_A", "lora_B", "lora_magnitude_vector"}
