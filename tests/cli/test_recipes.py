"""`adapterhub run-recipe`, with a recipe of impruver from data to chat."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from adapterhub import AdapterHub
from adapterhub.dataset import read_records

JOKES = [
    {"task": f"Tell me joke {number}", "joke": f"{'ha ' * (number % 5)}joke {number}!"}
    for number in range(40)
]


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path) -> Path:
    """As impruver's own, with a local source."""
    (tmp_path / "jokes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in JOKES))
    content = {
        "output_dir": "./models/jokes",
        "train_path": "./train.jokes.jsonl",
        "val_path": "./val.jokes.jsonl",
        "datasets": [
            {
                "name": "./jokes.jsonl",
                "converter": "impruver.instruction_to_messages",
                "mapping": {"instruction": "task", "output": "joke"},
                "add_global_bos": False,
            }
        ],
        "model": {"class": "transformers.AutoModelForCausalLM", "name": str(tiny_base), "dtype": "fp32"},
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0, "bias": "none", "task_type": "CAUSAL_LM"},
        "tokenizer": {"name": str(tiny_base), "max_tokens_count": 200, "special_tokens": {"pad_token": "<s>"}},
        "trainer": {
            "per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": "5e-3", "optim": "adamw_torch",
            "remove_unused_columns": False, "torch_compile": False, "seed": 1,
        },
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.spec("3-C1", "3-C2", "3-C4", "3-F0", "3-F1", "3-F2", "3-F4")
def test_from_data_to_chat(own, recipe: Path, tmp_path: Path, tiny_base: Path, monkeypatch):
    composed = own("run-recipe", "compose_dataset", "--config", recipe)
    assert composed.code == 0, composed.err
    train, val = (read_records(tmp_path / f"{name}.jokes.jsonl") for name in ("train", "val"))
    assert (len(train), len(val)) == (38, 2)  # 5 %, as in impruver
    asked = {record.messages[0].content for record in (*train, *val)}
    assert asked == {row["task"] for row in JOKES}

    trained = own("run-recipe", "finetune", "--config", recipe, "--output_dir", tmp_path / "out", "--seed=2")
    assert (trained.code, trained.out) == (0, "jokes@1\n"), trained.err
    assert "Of no use here, and left out: tokenizer.special_tokens." in trained.err
    assert json.loads((tmp_path / "out" / "result.json").read_text())["lastTrainStep"] == 3
    assert (tmp_path / "out" / "checkpoint-3" / "adapter_model.safetensors").is_file()

    flags = (
        "--max_new_tokens",
        "8",
        "--history_limit",
        "0",
        "--system_prompt",
        "Be funny.",
        "--do_sample",
        "False",
    )
    said = []
    for given in ((), ("--output_dir", tmp_path / "out")):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Tell me joke 7\n"))
        chatted = own("run-recipe", "chat", "--config", recipe, *given, *flags)
        assert chatted.code == 0, chatted.err
        said.append(chatted.out)
    messages = [{"role": "system", "content": "Be funny."}, {"role": "user", "content": "Tell me joke 7"}]
    with AdapterHub.from_pretrained(tiny_base, tmp_path / "registry", quantization=None) as hub:
        wanted = hub.generate(messages, "jokes", max_tokens=8, temperature=0).text
        assert wanted != hub.generate(messages, None, max_tokens=8, temperature=0).text
    assert said == [f"{wanted}\n"] * 2


@pytest.mark.spec("3-C1", "3-C2")
def test_flags_replace_the_recipe_s_paths(own, recipe: Path, tmp_path: Path):
    paths = ("--train_path", tmp_path / "a.jsonl", "--val_path", tmp_path / "b.jsonl")
    assert own("run-recipe", "compose_dataset", "--config", recipe, *paths).code == 0
    assert (tmp_path / "a.jsonl").is_file()
    assert not (tmp_path / "train.jokes.jsonl").exists()
    trained = own("run-recipe", "finetune", "--config", recipe, *paths, "--json")
    assert trained.json["datasets"][0].startswith("a.jsonl ")


@pytest.mark.spec("3-C3", "3-F3")
def test_the_recipe_s_adapter_becomes_gguf_files(own, recipe: Path, tmp_path: Path, tiny_adapters):
    assert own("add", "jokes", tiny_adapters["json"]).code == 0
    flags = ("--quantization_levels", '["q8_0"]', "--no_verify")
    shown = own("run-recipe", "convert_gguf", "--config", recipe, *flags)
    folder = tmp_path / "models" / "jokes" / "gguf"
    assert (shown.code, shown.out) == (0, f"{folder}\n"), shown.err
    names = {path.name for path in folder.iterdir()}
    models = {"model-f16.gguf", "model-q8_0.gguf", "Modelfile.f16", "Modelfile.q8_0"}
    assert names == models | {"README.md", "gguf.json"}
    assert "model-q8_0.gguf: " in shown.err
    assert json.loads((folder / "gguf.json").read_text())["adapter"] == "jokes@1"
    again = own("run-recipe", "convert_gguf", "--config", recipe, *flags)
    assert (again.code, "is not empty" in again.err) == (1, True)


@pytest.mark.spec("3-C3")
def test_the_last_checkpoint_is_converted_and_what_is_wrong_is_said(
    own, recipe: Path, tmp_path: Path, tiny_adapters
):
    shutil.copytree(tiny_adapters["code"], tmp_path / "run" / "checkpoint-7")
    given = ("convert-gguf", recipe, "--output-dir", tmp_path / "run", "--no-verify", "--json")
    report = own(*given, "--quantization-levels", "q8_0").json
    assert (report["adapter"], report["files"][1]["file"]) == ("jokes@1", "model-q8_0.gguf")
    assert (tmp_path / "run" / "gguf" / "model-f16.gguf").is_file()
    refused = own(*given, "--quantization-levels", "[1]")
    assert (refused.code, "types with commas" in refused.err) == (2, True)
    absent = own("convert-gguf", recipe)
    assert (absent.code, "jokes" in absent.err) == (1, True)


@pytest.mark.spec("3-F0")
def test_a_configuration_is_required_and_has_to_be_there(own, tmp_path: Path):
    for step in ("compose_dataset", "finetune", "chat", "convert_gguf"):
        assert own("run-recipe", step).code == 2
    for step in ("compose_dataset", "finetune", "chat"):
        shown = own("run-recipe", step, "--config", tmp_path / "missing.yaml")
        assert (shown.code, "missing.yaml" in shown.err) == (1, True)
    assert "Did you mean 'finetune'" in own("run-recipe", "finetun", "--config", "x").err


@pytest.mark.spec("3-F0")
def test_a_shipped_configuration_by_its_name(own, monkeypatch):
    from adapterhub.cli import recipes
    from adapterhub.configs import shipped_configs

    seen = []
    monkeypatch.setattr(recipes, "run_chat", lambda config, output_dir: seen.append((config, output_dir)))
    names = [config.name for config in shipped_configs() if config.base == "adapterhub-demo"]
    shown = own("run-recipe", "chat", "--config", names[0], "--temperature", "0.5")
    assert shown.code == 0, shown.err
    ((config, output_dir),) = seen
    assert (config.base, config.generation, output_dir) == ("adapterhub-demo", {"temperature": 0.5}, None)
