"""The columns of this package's own engines say what their code refuses, feature by feature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.base import LinearLayers, check_against_base
from adapterhub.capabilities import (
    HIGHEST_RANK,
    MATRIX,
    VLLM_MAX_LORA_RANKS,
    AdapterFeatures,
    Backend,
    Feature,
    Remedy,
)
from adapterhub.errors import AdapterIncompatibleError
from adapterhub.gguf.adapter import adapter_tensors
from adapterhub.gguf.architectures import Architecture
from adapterhub.lora.loading import read_deltas_without_base
from adapterhub.peft_format import AdapterConfig, inspect_adapter
from tests.test_hub_mixtures import old_adapter
from tests.tiny import make_adapter, make_base

CONFIGS: dict[Feature, dict[str, Any]] = {
    Feature.LORA_BIAS: {"lora_bias": True},
    Feature.BASE_CHANGING_INIT: {"init_lora_weights": "pissa_niter_4"},
    Feature.LORA_GA: {"init_lora_weights": "lora_ga"},
    Feature.ALORA: {"alora_invocation_tokens": [1]},
    Feature.LAYER_REPLICATION: {"layer_replication": [[0, 2], [1, 2]]},
    Feature.BDLORA: {"use_bdlora": {"nblocks": 2}},
    Feature.QALORA: {"use_qalora": True},
    Feature.ARROW: {"arrow_config": {"top_k": 2}},
    Feature.KASA: {"kasa_config": {"beta": 1e-4}},
    Feature.MONTECLORA: {"monteclora_config": {"num_samples": 2}},
    Feature.OTHER_METHOD: {"peft_type": "LOHA"},
    Feature.OTHER_TASK: {"task_type": "SEQ_CLS"},
}
"""Configs of adapters that the registry does not store."""
ADAPTERS: dict[Feature, tuple[str, dict[str, Any]]] = {
    Feature.RSLORA: ("llama", {"use_rslora": True}),
    Feature.RANK_PATTERN: ("llama", {"rank_pattern": {"q_proj": 2}}),
    Feature.ALPHA_PATTERN: ("llama", {"alpha_pattern": {"q_proj": 2}}),
    Feature.DORA: ("llama", {"use_dora": True}),
    Feature.BIAS: ("llama", {"bias": "all"}),
    Feature.COPIED_WEIGHTS: ("qwen2", {"bias": "all"}),
    Feature.EMBEDDINGS: ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    Feature.MODULES_TO_SAVE: ("llama", {"modules_to_save": ["lm_head"]}),
    Feature.TRAINABLE_TOKENS: ("llama", {"trainable_token_indices": [1, 5]}),
    Feature.TARGET_PARAMETERS: ("qwen3_moe", {"target_parameters": ["experts.down_proj"]}),
    Feature.EXPERTS: ("mixtral", {}),
}
"""The base and PEFT's settings of adapters that the registry stores."""


def stored_adapter(feature: Feature, folder: Path) -> tuple[Path, Path]:
    """An adapter that has the feature, as PEFT saves it, and its base."""
    kind, settings = ADAPTERS[feature]
    base = make_base(folder / "base", kind)
    if feature is Feature.EXPERTS:
        return old_adapter(folder / "adapter", kind, base), base
    return make_adapter(folder / "adapter", base, **settings), base


def test_every_feature_has_a_cell_with_a_source_for_every_back_end():
    assert MATRIX.keys() == set(Feature)
    for feature, row in MATRIX.items():
        assert list(row) == list(Backend), feature
        for cell in row.values():
            assert cell.source.endswith(".py"), feature
            assert cell.runs or (cell.note and cell.note[0].islower()), feature
            assert not (cell.runs and cell.remedy is not Remedy.NONE), feature


def test_the_sources_of_this_package_are_its_files():
    import adapterhub

    root = Path(adapterhub.__file__).parents[1]
    sources = {cell.source for row in MATRIX.values() for cell in row.values()}
    ours = {source for source in sources if source.startswith("adapterhub/")}
    assert len(ours) >= 4
    assert [source for source in ours if not (root / source).is_file()] == []


def test_every_feature_is_tried_here():
    assert CONFIGS.keys() | ADAPTERS.keys() == set(Feature)


@pytest.mark.parametrize("feature", CONFIGS)
def test_what_the_registry_refuses_runs_on_no_engine_of_this_package(feature: Feature):
    config = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], **CONFIGS[feature]}
    assert AdapterFeatures.of(config).features == {feature}
    with pytest.raises(AdapterIncompatibleError) as refused:
        AdapterConfig.parse(json.dumps(config).encode())
    row = MATRIX[feature]
    assert not row[Backend.IN_PROCESS].runs
    assert not row[Backend.LLAMA_CPP].runs
    if feature not in (Feature.OTHER_METHOD, Feature.OTHER_TASK, Feature.BASE_CHANGING_INIT, Feature.LORA_GA):
        assert row[Backend.IN_PROCESS].note in refused.value.message


@pytest.mark.parametrize("init", ["pissa", "PiSSA_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_every_initialisation_that_the_registry_refuses_is_seen(init: str):
    config = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], "init_lora_weights": init}
    with pytest.raises(AdapterIncompatibleError, match="init_lora_weights"):
        AdapterConfig.parse(json.dumps(config).encode())
    (feature,) = AdapterFeatures.of(config).features
    assert not MATRIX[feature][Backend.IN_PROCESS].runs


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_an_initialisation_that_leaves_the_base_alone_is_plain_lora(init: object):
    config = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], "init_lora_weights": init}
    assert AdapterFeatures.of(config) == AdapterFeatures(frozenset(), 8)
    AdapterConfig.parse(json.dumps(config).encode())


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("feature", ADAPTERS)
def test_what_fits_a_base_runs_in_process_and_on_llama_cpp_as_the_matrix_says(
    feature: Feature, tmp_path: Path
):
    adapter, base = stored_adapter(feature, tmp_path)
    assert feature in AdapterFeatures.of_folder(adapter).features
    check_against_base(inspect_adapter(adapter), adapter, base)
    assert MATRIX[feature][Backend.IN_PROCESS].runs
    if feature is Feature.TARGET_PARAMETERS or feature is Feature.EXPERTS:
        return  # llama.cpp's names of mixtures are not known here, so none is a base of that engine
    architecture = Architecture.of_folder(base)
    try:
        runs = bool([*adapter_tensors(architecture, deltas(adapter, base))])
    except AdapterIncompatibleError:
        runs = False
    assert MATRIX[feature][Backend.LLAMA_CPP].runs is runs


def deltas(adapter: Path, base: Path) -> Any:
    from adapterhub.base.module_weights import ModuleWeights

    layers = LinearLayers.of_folder(base)
    assert layers is not None
    return read_deltas_without_base(adapter, layers, ModuleWeights(base, layers))


def test_plain_lora_has_no_features(tiny_base: Path, tmp_path: Path):
    adapter = make_adapter(tmp_path / "adapter", tiny_base, r=6)
    assert AdapterFeatures.of_folder(adapter) == AdapterFeatures(frozenset(), 6)


def test_the_ranks_of_vllm_are_its_own():
    assert VLLM_MAX_LORA_RANKS == (1, 8, 16, 32, 64, 128, 256, 320, 512)
    assert HIGHEST_RANK[Backend.VLLM] == 512
