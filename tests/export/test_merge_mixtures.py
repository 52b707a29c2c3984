"""Merging adapters of mixtures: the weights are those of PEFT's merge, however the base's files hold the experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapterhub.errors import AdapterIncompatibleError
from adapterhub.export import merge_adapter
from adapterhub.export.lora_form import LoraForm
from adapterhub.export.peft_folder import export_peft
from adapterhub.registry import AdapterRegistry
from tests.tiny import make_adapter, make_base

# PEFT compares patterns with the names of modules for this warning, and with those of parameters when it uses them.
pytestmark = pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
EXPERTS = ["experts.gate_up_proj", "experts.down_proj", "router.weight", "gate.weight"]
SETTINGS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "experts": {
        "target_modules": ["q_proj"],
        "target_parameters": EXPERTS,
        "rank_pattern": {".*down_proj": 3},
    },
}
# Files with a tensor for each expert's gate, up and down; under other names; all experts in one tensor, transposed.
KINDS = ("qwen3_moe", "mixtral", "gpt_oss")


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp(request.param) / "base", request.param)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
    )
    merged = model.merge_and_unload()
    return {name: weight.clone() for name, weight in merged.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_merge_is_pefts(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    adapter = make_adapter(tmp_path / "adapter", base, **settings)
    report = merge_adapter(base, adapter, tmp_path / "merged")
    assert report.verification is not None
    assert_same(weights(tmp_path / "merged"), wanted := merged_by_peft(base, adapter))
    # PEFT's "all-linear" leaves the experts of gpt-oss as they are.
    touched = settings is not SETTINGS["all-linear"] or "gpt_oss" not in str(base)
    experts = "model.layers.0.mlp.experts.down_proj"
    assert torch.equal(weights(base)[experts], wanted[experts]) is not touched


def test_a_blend_is_the_sum_of_the_merges(base: Path, tmp_path: Path) -> None:
    parts = {make_adapter(tmp_path / name, base, **one): 0.5 for name, one in SETTINGS.items()}
    merge_adapter(base, parts, tmp_path / "merged")
    before, merges = weights(base), [merged_by_peft(base, folder) for folder in parts]
    wanted = {
        name: weight + sum(0.5 * (merged[name] - weight) for merged in merges)
        for name, weight in before.items()
    }
    assert_same(weights(tmp_path / "merged"), wanted)


def test_sixteen_bits_are_rounded_once(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "qwen3_moe", dtype=torch.bfloat16)
    adapter = make_adapter(tmp_path / "adapter", base, **SETTINGS["all-linear"])
    report = merge_adapter(base, adapter, tmp_path / "merged")
    assert report.dtypes == ("BF16",)
    wanted = {name: weight.bfloat16().float() for name, weight in merged_by_peft(base, adapter).items()}
    found = weights(tmp_path / "merged")
    differing = {name for name in wanted if not torch.equal(found[name], wanted[name])}
    assert differing == set()


def test_other_forms_are_refused(base: Path, tmp_path: Path) -> None:
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("a", make_adapter(tmp_path / "adapter", base, **SETTINGS["experts"]), base=base)
    export_peft(registry, "a", tmp_path / "copy")
    for form in (LoraForm(plain=True), LoraForm(rank=2)):
        with pytest.raises(AdapterIncompatibleError, match=r"by more than LoRA|cannot be rewritten"):
            export_peft(registry, "a", tmp_path / "other", form)
    assert not (tmp_path / "other").exists()
