"""Reasons, hints and conversions: what does not run, why not, and what makes it fit."""

from __future__ import annotations

import shlex
from itertools import combinations
from pathlib import Path

import pytest

from adapterhub.capabilities import (
    AdapterFeatures,
    Backend,
    Capability,
    Conversion,
    Feature,
    capabilities_of,
    capability,
    check_adapter,
)
from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError
from tests.tiny import make_adapter


def on(backend: Backend, *features: Feature, rank: int = 8, limit: int | None = None) -> Capability:
    return capability(AdapterFeatures(frozenset(features), rank), backend, max_lora_rank=limit)


def test_plain_lora_runs_everywhere():
    found = capabilities_of(AdapterFeatures(frozenset(), 8))
    assert [one.backend for one in found] == list(Backend)
    assert all(one.runs and not one.reason and not one.hint and one.conversion is None for one in found)


@pytest.mark.parametrize(("rank", "limit", "runs"), [(32, 32, True), (33, 32, False), (512, None, True)])
def test_a_rank_above_the_servers_is_cut_to_it(rank: int, limit: int | None, runs: bool):
    found = on(Backend.VLLM, rank=rank, limit=limit)
    assert found.runs is runs
    assert found.conversion == (None if runs else Conversion(rank=32))


def test_no_vllm_takes_a_rank_above_its_highest():
    found = on(Backend.VLLM, rank=600)
    assert found.reason == "its rank is 600, above 512"
    assert found.conversion == Conversion(rank=512)
    assert on(Backend.IN_PROCESS, rank=600).runs


def test_rslora_is_folded_into_alpha_for_sglang_which_is_exact():
    assert on(Backend.VLLM, Feature.RSLORA).runs
    found = on(Backend.SGLANG, Feature.RSLORA, Feature.ALPHA_PATTERN)
    assert found.conversion == Conversion()
    assert found.conversion.is_exact
    assert found.hint == "`adapterhub export NAME OUT --format peft --plain` is exact."
    assert "alpha / sqrt(r)" in found.reason
    assert "alpha_pattern" in found.reason


def test_dora_is_approximated_at_a_rank_that_the_server_takes():
    found = on(Backend.VLLM, Feature.DORA, rank=64, limit=16)
    assert found.conversion == Conversion(rank=16, dora=True)
    assert "--rank 16 --dora svd` approximates it" in found.hint


def test_what_no_rewriting_helps_is_merged_or_trained_otherwise():
    merged = on(Backend.VLLM, Feature.DORA, Feature.MODULES_TO_SAVE)
    assert merged.conversion is None
    assert merged.hint.startswith("Merge it into its base")
    never = on(Backend.VLLM, Feature.MODULES_TO_SAVE, Feature.ALORA)
    assert never.conversion is None
    assert never.hint.startswith("Train plain LoRA")


def test_what_cannot_be_registered_is_not_to_be_exported_or_merged():
    assert on(Backend.VLLM, Feature.LORA_GA, rank=8, limit=16).runs
    found = on(Backend.VLLM, Feature.LORA_GA, Feature.DORA, rank=64, limit=16)
    assert found.reason == "it uses DoRA; its rank is 64, above 16"
    assert found.conversion is None
    assert found.hint.startswith("Train plain LoRA")


def test_what_is_more_than_lora_on_linear_layers_is_not_rewritten():
    found = on(Backend.VLLM, Feature.EMBEDDINGS, rank=64, limit=16)
    assert not found.runs
    assert found.conversion is None
    assert found.hint.startswith("Merge it into its base")


def test_a_blend_is_one_adapter_of_plain_lora_with_the_ranks_of_all_parts():
    parts = [
        AdapterFeatures(frozenset({Feature.RSLORA}), 8),
        AdapterFeatures(frozenset({Feature.RANK_PATTERN}), 24),
    ]
    blend = AdapterFeatures.of_blend(parts)
    assert all(capability(blend, backend).runs for backend in Backend)
    found = capability(blend, Backend.VLLM, max_lora_rank=16)
    assert found.reason == "its rank is 32, above 16"
    assert found.conversion == Conversion(rank=16)
    assert capability(blend.rewritten(rank=16), Backend.VLLM, max_lora_rank=16).runs


def test_a_part_that_changes_more_than_linear_layers_is_served_alone_only():
    embeddings = AdapterFeatures(frozenset({Feature.EMBEDDINGS}), 8)
    assert capability(embeddings, Backend.VLLM).runs
    blend = AdapterFeatures.of_blend([embeddings, AdapterFeatures(frozenset(), 8)])
    found = capability(blend, Backend.VLLM)
    assert "embeddings" in found.reason
    assert found.conversion is None
    assert "adapterhub merge" in found.hint
    assert capability(blend, Backend.IN_PROCESS).runs


@pytest.mark.parametrize("backend", Backend)
def test_every_conversion_makes_the_adapter_run(backend: Backend):
    converted = 0
    for features in (frozenset(some) for count in (0, 1, 2, 3) for some in combinations(Feature, count)):
        adapter = AdapterFeatures(features, max_rank=64)
        found = capability(adapter, backend, max_lora_rank=32)
        if found.conversion:
            rewritten = adapter.rewritten(rank=found.conversion.rank, dora=found.conversion.dora)
            assert capability(rewritten, backend, max_lora_rank=32).runs, features
            converted += 1
    assert converted > 10


@pytest.mark.parametrize("conversion", [Conversion(), Conversion(rank=16), Conversion(rank=16, dora=True)])
def test_the_options_are_those_of_the_export_command_and_of_lora_form(conversion: Conversion):
    from adapterhub.cli.export import export
    from adapterhub.export import LoraForm

    parsed = export.make_context("export", ["name", "out", *shlex.split(conversion.options)]).params
    form = LoraForm(plain=parsed["plain"], rank=parsed["rank"], dora=parsed["dora"] or "keep")
    assert form == LoraForm(plain=True, rank=conversion.rank, dora="svd" if conversion.dora else "keep")


def test_an_adapter_that_does_not_run_is_refused_with_reason_and_hint(tiny_base: Path, tmp_path: Path):
    adapter = make_adapter(tmp_path / "adapter", tiny_base, r=20, use_dora=True)
    with pytest.raises(AdapterIncompatibleError) as refused:
        check_adapter(adapter, Backend.VLLM, max_lora_rank=16, name="json@3")
    assert refused.value.message == "json@3 does not run on vllm: it uses DoRA; its rank is 20, above 16."
    assert "--format peft --plain --rank 16 --dora svd" in str(refused.value.hint)
    check_adapter(adapter, Backend.IN_PROCESS)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path):
    with pytest.raises(AdapterInvalidError):
        check_adapter(tmp_path, Backend.VLLM)
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(AdapterInvalidError, match="not a JSON object"):
        check_adapter(tmp_path, Backend.VLLM)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterInvalidError, match="not JSON"):
        check_adapter(tmp_path, Backend.VLLM)


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        ({}, 8),  # PEFT's default
        ({"r": None}, 8),
        ({"r": 16.0}, 16),
        ({"r": 4, "rank_pattern": {"q_proj": 64}}, 64),
        ({"r": "many", "rank_pattern": {"q_proj": float("inf")}}, 0),
        ({"r": 10**400}, 10**400),
    ],
)
def test_the_rank_is_the_highest_that_the_config_names(config: dict[str, object], rank: int):
    assert AdapterFeatures.of({"peft_type": "LORA", **config}).max_rank == rank
