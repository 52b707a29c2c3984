"""An adapter's own template and end token in serving, training, merge, LangChain and `show`: one profile for all."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from langchain_core.messages import HumanMessage
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub.export.merge import merge_adapter
from adapterhub.langchain import ChatAdapterHub
from adapterhub.requests.options import RequestOptions
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.finetuning import finetune
from tests.tiny import CHAT_TEMPLATE, VOCABULARY, make_adapter, make_base

OWN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}\n{% endfor %}[assistant] "
MESSAGES = [{"role": "user", "content": "one?"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "bf16", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def own_tokenizer(base: Path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template, tokenizer.eos_token = OWN, "<|endoftext|>"
    return tokenizer


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path, own_tokenizer) -> Path:
    folder = make_adapter(tmp_path_factory.mktemp("adapter") / "own", base)
    own_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, base: Path, adapter: Path) -> AdapterRegistry:
    registry = AdapterRegistry(tmp_path_factory.mktemp("registry"))
    registry.register("own", adapter, base=base)
    return registry


@pytest.fixture(scope="module")
def hub(base: Path, registry: AdapterRegistry) -> Iterator[AdapterHub]:
    with AdapterHub.from_pretrained(base, registry.root, quantization=None) as hub:
        yield hub


def prompt_of(tokenizer) -> list[int]:
    return list(tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False))


def test_langchain_counts_the_tokens_of_the_adapters_prompt(hub: AdapterHub, own_tokenizer):
    model = ChatAdapterHub(hub=hub, model="own")
    assert model.get_num_tokens_from_messages([HumanMessage("one?")]) == len(prompt_of(own_tokenizer))


@pytest.mark.parametrize("registered", [True, False], ids=["a card", "no card"])
def test_a_merged_model_has_the_adapters_prompts_and_ends(
    base: Path, adapter: Path, registry: AdapterRegistry, own_tokenizer, tmp_path: Path, registered: bool
):
    merge_adapter(base, registry.root / "own" / "1" if registered else adapter, tmp_path / "out")
    merged = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert prompt_of(merged) == prompt_of(own_tokenizer)
    assert (merged.eos_token, merged.get_vocab()) == ("<|endoftext|>", own_tokenizer.get_vocab())
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 0]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id == [2, 0]


def test_a_merge_leaves_out_tokens_without_a_row_in_the_embedding(base: Path, tmp_path: Path, own_tokenizer):
    folder = shutil.copytree(base, tmp_path / "tokenizer")
    larger = AutoTokenizer.from_pretrained(folder)
    larger.add_tokens([f"<{number}>" for number in range(VOCABULARY)])
    larger.chat_template, larger.eos_token = OWN, "<|endoftext|>"
    larger.save_pretrained(make_adapter(tmp_path / "adapter", base))
    merge_adapter(base, tmp_path / "adapter", tmp_path / "out")
    merged = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert merged.get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    assert prompt_of(merged) == prompt_of(own_tokenizer)
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 0]


def test_a_stop_on_the_card_that_is_a_token_ends_the_merged_models_answers(
    base: Path, registry: AdapterRegistry, tmp_path: Path
):
    plain = registry.register("plain", make_adapter(tmp_path / "plain", base), base=base)
    registry.update("plain", prompt={"stop": ["<|im_start|>", "\nUser:", "<|im_end|>"]})
    (tmp_path / "base").mkdir()
    without = shutil.copytree(
        base, tmp_path / "without", ignore=shutil.ignore_patterns("generation_config.json")
    )
    for number, source in enumerate((base, without)):
        merge_adapter(source, registry.folder(plain), tmp_path / f"out{number}")
        assert GenerationConfig.from_pretrained(tmp_path / f"out{number}").eos_token_id == [2, 1]


def test_training_goes_on_with_the_profile_of_the_initial_adapter(
    base: Path, registry: AdapterRegistry, adapter: Path, tmp_path: Path
):
    turns = [*MESSAGES, {"role": "assistant", "content": "two"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    fields = {
        "name": "next",
        "base": str(base),
        "data": {"train": str(tmp_path / "data.jsonl")},
        "lora": {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        "train": {"max_steps": 1},
    }
    for initial in (registry.root / "own" / "1", adapter):
        card = finetune(FinetuneConfig.model_validate({**fields, "initial_adapter": initial}), registry)
        assert card.prompt == registry.get("own").prompt
        assert card.lineage.settings["prompt"] == "chat template of the card"
    mine = {**fields, "initial_adapter": adapter, "card": {"prompt": {"format": "instruction"}}}
    assert finetune(FinetuneConfig.model_validate(mine), registry).prompt.format == "instruction"


@pytest.fixture
def changed_base(base: Path, tmp_path: Path) -> Path:
    """The same base after its template was changed."""
    folder = shutil.copytree(base, tmp_path / "changed")
    (folder / "chat_template.jinja").write_text("new {{ messages[0]['content'] }}")
    return folder


@pytest.mark.parametrize("with_template", [True, False], ids=["its own is saved", "none is saved"])
def test_a_template_that_the_base_changed_later_is_told_and_the_adapters_is_used(
    base: Path, changed_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, with_template: bool
):
    folder = make_adapter(tmp_path / "adapter", base)
    if with_template:
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    registry = AdapterRegistry(tmp_path / "registry")
    assert registry.register("a", folder, base=base).prompt.chat_template is None
    with (
        AdapterHub.from_pretrained(changed_base, registry.root, quantization=None) as hub,
        caplog.at_level(logging.WARNING),
    ):
        prompts = [hub._preparer.prepare(MESSAGES, "a", RequestOptions({}, {})).request.prompt for _ in "12"]
        text = hub.engine.tokenizer.decode(prompts[0])
        assert hub.prompt_style(None).template == "new {{ messages[0]['content'] }}"
    expected = "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n" if with_template else "new one?"
    assert text == expected
    told = [record.message for record in caplog.records if "chat template" in record.message]
    assert len(told) == 1
    assert "a@1" in told[0]


def test_an_adapter_registered_anew_for_the_changed_base_is_told(
    base: Path, changed_base: Path, tmp_path: Path
):
    registry = AdapterRegistry(tmp_path / "registry")
    AutoTokenizer.from_pretrained(base).save_pretrained(make_adapter(tmp_path / "adapter", base))
    first = registry.register("a", tmp_path / "adapter", base=base)
    second = registry.register("a", registry.folder(first), base=changed_base)
    assert second.prompt.chat_template == CHAT_TEMPLATE
    assert sum("chat template" in warning for warning in second.warnings) == 2
