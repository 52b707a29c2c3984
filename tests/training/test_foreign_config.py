"""Configurations in the spelling of other tools."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapterhub.errors import ConfigError
from adapterhub.training.config import FinetuneConfig
from tests.specs.configurations import SPECIFICATION_0, SPECIFICATION_2


def parse(content: dict[str, Any], **options: Any) -> FinetuneConfig:
    return FinetuneConfig.parse(content, folder=Path("/runs"), origin="run.json", **options)


def problems(content: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(content)
    return caught.value.message


def snake_case(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name): snake_case(each)
        for name, each in value.items()
    }


@pytest.mark.parametrize("spell", [dict, snake_case], ids=["camelCase", "snake_case"])
def test_specification_0_is_read_as_it_stands(tmp_path: Path, spell: Any):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(spell(SPECIFICATION_0), indent="\t"))
    config = FinetuneConfig.load(path)
    (source,) = config.data.compose.sources
    assert (config.base, config.device) == ("distilgpt2", "auto")
    assert (config.quantization, config.compute_dtype) == ("nf4", "float16")
    assert (source.path, source.split) == ("databricks/databricks-dolly-15k", "train")
    assert (source.streaming, source.trust_remote_code, source.max_records) == (True, True, 1000)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (16, 32, 0.05)
    assert config.lora.target_modules == ["c_attn", "c_proj"]
    train = config.train
    assert (train.batch_size, train.gradient_accumulation, train.learning_rate) == (1, 4, 0.0002)
    assert (train.max_steps, train.logging_steps) == (250, 20)
    assert config.output_dir == tmp_path / "results"
    # Its loss is over the whole text, and its texts are "Instruction: ... Response: ...".
    assert (config.data.loss, config.card.prompt.format) == ("all", "plain")
    assert config.name == "distilgpt2-databricks-dolly-15k"


def test_the_learning_rate_of_specification_0_may_be_a_text():
    params = {**SPECIFICATION_0["trainingParams"], "learningRate": "2e-4"}
    assert parse({**SPECIFICATION_0, "trainingParams": params}).train.learning_rate == 0.0002


@pytest.mark.spec("2-D1", "2-D2")
def test_specification_2_is_read_as_it_stands(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(SPECIFICATION_2)
    config = FinetuneConfig.load(path)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (8, 16, 0.05)
    assert len(config.lora.target_modules) == 7
    train = config.train
    assert (train.batch_size, train.gradient_accumulation, train.epochs) == (2, 4, 2)
    assert (train.learning_rate, train.warmup, train.optimizer) == (1e-4, 0.003, "paged_adamw_8bit")
    assert (train.eval_every, train.logging_steps) == ("epoch", 10)
    assert (config.compute_dtype, config.report_to) == ("bfloat16", "none")
    assert (config.name, config.run_name) == ("tinyllama-anekdots", "tinyllama-anekdots")
    assert config.output_dir == tmp_path / "tinyllama-anekdots-lora"
    assert config.data.loss == "assistant"


def test_settings_of_trl_stand_at_the_top():
    config = parse(
        yaml.safe_load(
            "{name: a, model_name_or_path: b, train_path: c.jsonl, learning_rate: 1e-4, lora_r: 4, load_in_4bit: true,"
            " lora_target_modules: [q_proj], max_steps: -1, num_train_epochs: 2, optim: adamw_torch_fused}"
        )
    )
    assert (config.base, config.data.train) == ("b", Path("/runs/c.jsonl"))
    assert (config.lora.r, config.lora.target_modules, config.quantization) == (4, ["q_proj"], "nf4")
    assert (config.train.learning_rate, config.train.epochs, config.train.max_steps) == (1e-4, 2, None)


@pytest.mark.parametrize(
    ("settings", "quantization", "compute_dtype"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4", "auto"),
        ({"loadIn4Bit": True, "bnb4BitComputeDtype": "torch.bfloat16"}, "nf4", "bfloat16"),
        ({"load_in_8bit": True}, "int8", "auto"),
        ({"load_in_4bit": False}, None, "auto"),
        (None, None, "auto"),
    ],
)
def test_bitsandbytes_settings(settings: Any, quantization: str | None, compute_dtype: str):
    config = parse({**SPECIFICATION_0, "quantizationConfig": settings})
    assert (config.quantization, config.compute_dtype) == (quantization, compute_dtype)


@pytest.mark.parametrize(
    ("settings", "every"),
    [
        ({"eval_strategy": "steps", "eval_steps": 50}, 50),
        ({"eval_strategy": "steps", "logging_steps": 20}, 20),
        ({"eval_strategy": "no", "eval_steps": 50}, None),
        ({"eval_strategy": "epoch", "eval_steps": 50}, "epoch"),
        ({"eval_steps": 50}, 50),
    ],
)
def test_when_to_evaluate(settings: dict[str, Any], every: object):
    config = parse({"name": "a", "base": "b", "data": {"train": "c"}, "train": settings})
    assert config.train.eval_every == every


def test_changes_replace_what_the_file_says():
    config = parse(
        SPECIFICATION_0,
        changes={"data.train": Path("/a.jsonl"), "data.validation": Path("/b.jsonl"), "train.seed": 3},
    )
    assert (config.data.train, config.data.validation) == (Path("/a.jsonl"), Path("/b.jsonl"))
    assert (config.data.compose, config.train.seed, config.train.max_steps) == (None, 3, 250)


def test_one_error_names_every_wrong_field_as_the_file_writes_it():
    message = problems(
        {
            **SPECIFICATION_0,
            "quantizationConfig": {"load_in_4bit": "maybe"},
            "dataset": {**SPECIFICATION_0["dataset"], "streaming": "often", "shuffle": True},
            "loraConfig": {**SPECIFICATION_0["loraConfig"], "bias": "all", "loraAlpha": "much"},
            "trainingParams": {
                **SPECIFICATION_0["trainingParams"],
                "maxSteps": "all",
                "fsdp": True,
                "reportTo": "x",
            },
        }
    )
    wanted = [
        "quantizationConfig.load_in_4bit: not true or false",
        "dataset.0.streaming: ",
        "dataset.0.shuffle: Extra",
        "loraConfig.bias: only 'none' can be had",
        "loraConfig.loraAlpha: ",
        "trainingParams.maxSteps: ",
        "trainingParams.fsdp: Extra",
        "trainingParams.reportTo: ",
    ]
    assert [part for part in wanted if part not in message] == []


def test_a_setting_that_is_given_twice_is_an_error():
    run = {"name": "a", "base": "b", "data": {"train": "c"}}
    assert "lora.lora_alpha: lora.alpha says the same" in problems(
        {**run, "lora": {"alpha": 1, "lora_alpha": 2}}
    )
    assert "model_name: base says the same" in problems({**run, "model_name": "c"})
    assert "fp16 is given too" in problems({**run, "train": {"bf16": True, "fp16": True}})


@pytest.mark.parametrize("section", ["lora", "train", "data", "quantization_config", "card"])
@pytest.mark.parametrize("value", [3, ["a"], "text", True])
def test_a_section_of_another_type_is_an_error(section: str, value: object):
    run = {"name": "a", "base": "b", "learning_rate": 1, "lora_r": 4, "train_path": "c", section: value}
    assert section in problems(run)


@pytest.mark.parametrize("value", [3, ["a"], {"name": 3}, {}])
def test_a_dataset_without_a_path_is_an_error(value: object):
    assert "dataset.0.path: " in problems({**SPECIFICATION_0, "dataset": value})
