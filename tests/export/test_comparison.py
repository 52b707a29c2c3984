"""A merged model against base and adapter in one precision; the reference is PEFT's forward in float32."""

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub import AdapterRegistry
from adapterhub.errors import AdapterIncompatibleError, ConfigError, InvalidRequestError
from adapterhub.export import compare_merged, merge_adapter
from tests.tiny import make_adapter, make_base

PROMPTS = ("the quick brown fox", "one two three", "привет")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, base: Path) -> AdapterRegistry:
    registry = AdapterRegistry(tmp_path_factory.mktemp("registry"))
    for seed, name in enumerate(("json", "code"), start=1):
        adapter = make_adapter(tmp_path_factory.mktemp("adapter") / name, base, seed=seed)
        registry.register(name, adapter, base=base)
    return registry


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, base: Path, registry: AdapterRegistry) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "json"
    merge_adapter(base, registry.folder(registry.get("json")), folder)
    return folder


def test_a_merge_that_only_rounds_agrees(base: Path, registry: AdapterRegistry, merged: Path):
    compared = compare_merged(registry, "json", base, merged, PROMPTS, max_tokens=24)
    assert (compared.requests, compared.agreement, compared.top1_agreement) == (3, 1, 1)
    assert 0 < compared.kl_divergence < 1e-3  # bfloat16 weights: rounding is not nothing
    assert compared.perplexity_merged == pytest.approx(compared.perplexity_adapter, rel=0.02)
    assert compared.tokens >= 3


def test_the_figures_are_those_of_pefts_forward(base: Path, registry: AdapterRegistry, merged: Path):
    folder = registry.folder(registry.get("code"))  # not the adapter that was merged, so that they differ
    compared = compare_merged(registry, "code", base, merged, PROMPTS[:1], max_tokens=8)

    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder
    )
    other = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        ids = adapted.generate(input_ids=prompt, max_new_tokens=8, do_sample=False)
        answer = ids[0, prompt.shape[1] :]
        rows = slice(prompt.shape[1] - 1, -1)
        one, two = (model(input_ids=ids).logits[0, rows].log_softmax(-1) for model in (adapted, other))
    assert compared.tokens == len(answer)
    divergence = torch.nn.functional.kl_div(two, one, log_target=True, reduction="batchmean").item()
    assert compared.kl_divergence == pytest.approx(divergence, rel=1e-3)
    top1 = (one.argmax(-1) == two.argmax(-1)).float().mean().item()
    assert compared.top1_agreement == pytest.approx(top1)
    assert compared.agreement == 0
    for found, predictions in ((compared.perplexity_adapter, one), (compared.perplexity_merged, two)):
        ended = answer[-1] == tokenizer.eos_token_id
        scored = answer[:-1] if ended else answer
        loss = -predictions[torch.arange(len(scored)), scored].mean().item()
        assert found == pytest.approx(math.exp(loss), rel=1e-3)


def test_what_cannot_be_compared_is_an_error(
    base: Path, registry: AdapterRegistry, merged: Path, tmp_path: Path
):
    with pytest.raises(InvalidRequestError, match="no prompts"):
        compare_merged(registry, "json", base, merged, [])
    with pytest.raises(AdapterIncompatibleError):
        compare_merged(registry, "json", make_base(tmp_path / "other", seed=7), merged, PROMPTS)
    with pytest.raises(ConfigError):
        compare_merged(registry, "json", base, tmp_path, PROMPTS)
