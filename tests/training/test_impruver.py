"""Configurations of impruver as settings of a fine-tune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub import ConfigError
from adapterhub._yaml import parse_yaml
from adapterhub.training import FinetuneConfig
from adapterhub.training.impruver import Recipe, is_impruver, read_impruver

# In the form of impruver's own recipes, with every section that they have.
RECIPE = """
output_dir: ./models/ruGPT-3.5_13B_lora_jokes
train_path: ./train.jokes.jsonl
val_path: ./val.jokes.jsonl
datasets:
  - name: someone/jokes
    converter: impruver.instruction_to_messages
    add_global_bos: false
    add_global_eos: false
    mapping: {instruction: task, output: joke}
  - name: someone/dialogs
    converter: impruver.dialog_to_messages
    split: train[:1000]
model:
  class: transformers.AutoModelForCausalLM
  name: ai-forever/ruGPT-3.5-13B
  load_in_4bit: true
  load_in_8bit: false
  dtype: bf16
lora:
  r: 16
  lora_alpha: 16
  lora_dropout: 0.05
  bias: none
  target_modules: [c_attn, c_fc, c_proj]
  task_type: CAUSAL_LM
tokenizer:
  class: transformers.AutoTokenizer
  name: ai-forever/ruGPT-3.5-13B
  max_tokens_count: 1024
  chat_template: "{{ messages[0]['content'] }}"
trainer:
  eval_strategy: steps
  save_strategy: steps
  eval_steps: 100
  save_steps: 100
  per_device_train_batch_size: 1
  per_device_eval_batch_size: 1
  gradient_accumulation_steps: 128
  logging_steps: 1
  learning_rate: 2e-4
  num_train_epochs: 2
  lr_scheduler_type: cosine
  warmup_steps: 16
  optim: adamw_8bit
  metric_for_best_model: eval_loss
  load_best_model_at_end: true
  save_total_limit: 2
  seed: 42
  remove_unused_columns: false
  max_grad_norm: 1.0
  weight_decay: 0.08
  torch_compile: false
"""


def recipe(**changes: Any) -> Recipe:
    return read_impruver({**parse_yaml(RECIPE), **changes}, origin="recipe.yaml")


@pytest.mark.spec("3-F2")
def test_a_recipe_s_training(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    config = FinetuneConfig.load(tmp_path / "recipe.yaml")
    assert (config.name, config.base) == ("rugpt-3.5_13b_lora_jokes", "ai-forever/ruGPT-3.5-13B")
    assert (config.quantization, config.compute_dtype) == ("nf4", "bfloat16")
    assert (config.data.train, config.data.validation) == (
        tmp_path / "train.jokes.jsonl",
        tmp_path / "val.jokes.jsonl",
    )
    assert config.output_dir == tmp_path / "models" / "ruGPT-3.5_13B_lora_jokes"
    lora, train = config.lora, config.train
    assert (lora.r, lora.alpha, lora.dropout, lora.target_modules) == (
        16,
        16,
        0.05,
        ["c_attn", "c_fc", "c_proj"],
    )
    assert (train.epochs, train.batch_size, train.gradient_accumulation) == (2, 1, 128)
    assert (train.learning_rate, train.warmup, train.scheduler) == (2e-4, 16, "cosine")
    assert (train.optimizer, train.weight_decay, train.seed) == ("adamw_8bit", 0.08, 42)
    assert (train.eval_every, train.save_every, train.max_length) == (100, 100, 1024)
    assert (train.load_best, train.save_total_limit) == (True, 2)
    assert config.card.prompt.chat_template == "{{ messages[0]['content'] }}"
    assert config.data.loss == "assistant"


@pytest.mark.parametrize(
    ("given", "quantization"),
    [({}, None), ({"load_in_4bit": True}, "nf4"), ({"load_in_8bit": True}, "int8")],
)
def test_quantization(given: dict[str, Any], quantization: str | None):
    settings = recipe(model={"name": "some/base", **given}, tokenizer={})
    assert settings.settings()["quantization"] == quantization


def test_loss_on_the_whole_text_if_no_dataset_wants_only_the_target():
    assert recipe(datasets=[]).settings()["data"]["loss"] == "assistant"
    assert recipe(datasets=[{"name": "a", "only_target_loss": False}]).settings()["data"]["loss"] == "all"


def test_what_has_no_effect_is_named():
    assert recipe().without_effect == []
    given = recipe(
        ddp={"ddp_find_unused_parameters": False},
        model={"name": "some/base", "attn_implementation": "flash_attention_2"},
        tokenizer={"special_tokens": {"pad_token": "<s>"}},
        trainer={"torch_compile": True},
    )
    assert given.without_effect == [
        "model.attn_implementation",
        "tokenizer.special_tokens",
        "trainer.torch_compile",
        "ddp",
    ]


def test_what_cannot_be_had_is_named_at_once():
    quantized = {"load_in_4bit": True, "load_in_8bit": True}
    with pytest.raises(ConfigError) as raised:
        recipe(
            model={"class": "transformers.LlamaForCausalLM", "config": {"hidden_size": 64}, **quantized},
            lora=None,
            tokenizer={"name": "another/base"},
            datasets=[{"name": "a", "only_target_loss": False}, {"name": "b"}],
        )
    fields = ("model: a model", "tokenizer.name", "lora:", "load_in_8bit", "only_target_loss")
    assert [field for field in fields if field not in raised.value.message] == []


def test_unknown_fields_are_named_at_once():
    with pytest.raises(ConfigError, match=r"modle.*trian_path|trian_path.*modle"):
        recipe(modle={}, trian_path="x")


def test_other_configurations_are_none():
    assert is_impruver(parse_yaml(RECIPE))
    assert not is_impruver({"name": "a", "base": "b", "data": {}})
    assert not is_impruver({"model": "some/base"})
