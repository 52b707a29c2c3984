"""From training to a merge on a base with recurrent layers: what registers is served and merged as PEFT has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub.base import load_base
from adapterhub.engine import BatchingEngine
from adapterhub.export import merge_adapter
from adapterhub.training import FinetuneConfig, finetune
from tests.engine.hybrids import hybrid_config
from tests.tiny import make_adapter, make_base

PROMPTS = ["a", "the quick brown fox", "one two three four, the lazy dog and the quick fox " * 3]
OPTIONS = {"raw": True, "max_tokens": 10, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3.5: a gated delta net, then attention."""
    return make_base(
        tmp_path_factory.mktemp("hybrid") / "base", config=hybrid_config("qwen3_5_text"), std=0.2
    )


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, base: Path) -> AdapterRegistry:
    """A fine-tune of a few steps, and a random adapter of another rank."""
    root = tmp_path_factory.mktemp("adapters")
    registry = AdapterRegistry(root / "registry")
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two three four"}]
    (root / "data.jsonl").write_text(8 * (json.dumps({"messages": turns}) + "\n"))
    config = FinetuneConfig.model_validate(
        {
            "name": "tuned",
            "base": str(base),
            "quantization": None,
            "data": {"train": str(root / "data.jsonl"), "validation_share": 0},
            "lora": {"r": 4, "target_modules": "all-linear"},
            "train": {"max_steps": 4, "batch_size": 2, "learning_rate": 0.05, "warmup": 0},
        }
    )
    finetune(config, registry)
    other = make_adapter(root / "other", base, r=6, target_modules=["in_proj_qkv", "out_proj", "q_proj"])
    registry.register("other", other, base=base)
    return registry


def greedy(model: torch.nn.Module, ids: list[int]) -> list[int]:
    given = len(ids)
    with torch.inference_mode():
        for _ in range(OPTIONS["max_tokens"]):
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[given:]


def reference(base: Path, adapter: Path | None) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return PeftModel.from_pretrained(model, adapter).eval() if adapter else model


def test_a_fine_tune_is_registered_and_served_in_a_mixed_batch(base: Path, registry: AdapterRegistry):
    assert registry.verify() == []
    asked = [(prompt, name) for prompt in PROMPTS for name in (None, "tuned", "other")]
    engine = BatchingEngine(load_base(base, quantization=None, device="cpu"))
    with AdapterHub(engine, registry) as hub:
        answers = hub.generate_batch([prompt for prompt, _ in asked], [name for _, name in asked], **OPTIONS)
        assert hub.stats().runner == "packed"
        encode = hub.engine.tokenizer.encode

    models = {
        name: reference(base, registry.folder(registry.resolve(name)) if name else None)
        for name in (None, "tuned", "other")
    }
    expected = [greedy(models[name], encode(prompt)) for prompt, name in asked]
    assert [list(answer.completions[0].token_ids) for answer in answers] == expected
    assert all(len({tuple(expected[3 * n + k]) for k in range(3)}) == 3 for n in range(len(PROMPTS)))


def test_a_fine_tune_is_merged_as_peft_merges_it(base: Path, registry: AdapterRegistry, tmp_path: Path):
    adapter = registry.folder(registry.resolve("tuned"))

    report = merge_adapter(base, adapter, tmp_path / "merged", dtype="float32")

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    expected = reference(base, adapter).merge_and_unload().state_dict()
    assert report.merged == sum("lora_A" in name for name in load_file(adapter / "adapter_model.safetensors"))
    assert any("linear_attn.in_proj_qkv" in name for name in load_file(adapter / "adapter_model.safetensors"))
    for name, weight in merged.state_dict().items():
        assert torch.equal(weight, expected[name]), name
