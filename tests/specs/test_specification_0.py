"""Specification 0: `examples/quest_5_2.py` fine-tunes a base as a JSON configuration says, and reports the outcome."""

from __future__ import annotations

import copy
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub._files import sha256_file
from adapterhub.base import Base
from adapterhub.training import FinetuneConfig, finetune, trainer
from tests.specs.conftest import EXAMPLES
from tests.tiny import make_base

GIVEN = json.loads((EXAMPLES / "quest_5_2.json").read_text(encoding="utf-8"))
SECRET = "hf_" + "x" * 34
ANSWERS = {"fox": "dog", "one": "two", "three": "four", "quick": "brown"}
LAYERS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "v_proj"]}

both = pytest.mark.parametrize("base", LAYERS, indirect=True)


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2, as distilgpt2 is one, or another kind that a test asks for."""
    kind = getattr(request, "param", "gpt2")
    return make_base(tmp_path_factory.mktemp("base") / kind, kind, chat_template=None)


@pytest.fixture
def given(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The specification's configuration on a base and a dataset of this machine, for few steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", str(tmp_path / "registry"))
    rows = [
        {"instruction": f"Say what follows {word} {count}", "context": "", "response": answer}
        for count in ("once", "twice", "again")
        for word, answer in ANSWERS.items()
    ]
    lines = (json.dumps({**row, "category": "open_qa"}) for row in rows)
    (tmp_path / "dolly.jsonl").write_text("\n".join(lines))
    changed = copy.deepcopy(GIVEN)
    changed["modelName"] = str(base)
    changed["dataset"]["name"] = "dolly.jsonl"
    changed["loraConfig"]["targetModules"] = LAYERS[base.name]
    changed["trainingParams"] |= {"maxSteps": 4, "loggingSteps": 2, "learningRate": 5e-3}
    return changed


@pytest.mark.spec(
    "0-I0", "0-I1", "0-I2", "0-I3", "0-I4", "0-I5", "0-I6", "0-I7", "0-I8", "0-I9", "0-I10", "0-I11"
)
@pytest.mark.spec(
    "0-I12", "0-I13", "0-I14", "0-I15", "0-I16", "0-I17", "0-I18", "0-I19", "0-I20", "0-I21", "0-I22"
)
@pytest.mark.spec("0-D1", "0-F5")
def test_the_configuration_beside_the_program_has_the_values_of_the_specification():
    assert GIVEN == {
        "modelName": "distilgpt2",
        "quantizationConfig": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": "torch.float16",
        },
        "deviceMap": "auto",
        "dataset": {
            "name": "databricks/databricks-dolly-15k",
            "split": "train",
            "streaming": True,
            "trustRemoteCode": True,
        },
        "maxRecords": 1000,
        "loraConfig": {
            "r": 16,
            "loraAlpha": 32,
            "targetModules": ["c_attn", "c_proj"],
            "loraDropout": 0.05,
            "bias": "none",
            "taskType": "CAUSAL_LM",
        },
        "trainingParams": {
            "outputDir": "./results",
            "perDeviceTrainBatchSize": 1,
            "gradientAccumulationSteps": 4,
            "learningRate": 0.0002,
            "maxSteps": 250,
            "loggingSteps": 20,
        },
    }
    config = FinetuneConfig.load(EXAMPLES / "quest_5_2.json")
    (source,) = config.data.compose.sources
    assert (config.base, config.device) == ("distilgpt2", "auto")
    assert (config.quantization, config.compute_dtype) == ("nf4", "float16")
    assert (source.path, source.split) == ("databricks/databricks-dolly-15k", "train")
    assert (source.streaming, source.trust_remote_code, source.max_records) == (True, True, 1000)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (16, 32, 0.05)
    assert config.lora.target_modules == ["c_attn", "c_proj"]
    assert (config.train.batch_size, config.train.gradient_accumulation) == (1, 4)
    assert (config.train.learning_rate, config.train.max_steps, config.train.logging_steps) == (2e-4, 250, 20)
    assert config.output_dir == EXAMPLES / "results"


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # peft sets it then
@pytest.mark.spec(
    "0-O1", "0-O2", "0-O3", "0-O4", "0-O5", "0-O6", "0-X1", "0-F2", "0-F4", "0-F7", "0-G1", "0-N1"
)
@both
def test_a_training_completes(program, given: dict[str, Any], tmp_path: Path, base: Path):
    done = program("quest_5_2", given)
    assert done.code == 0
    result = json.loads((tmp_path / "results" / "result.json").read_text())
    assert done.json == result
    metrics = result.pop("metrics")
    assert result == {
        "artifactsDir": "results",
        "status": "success",
        "lastTrainStep": 4,
        "finalModelName": f"{base.name}-dolly@1",
    }
    assert 0 < metrics["train_loss"] < 8
    assert metrics["train_samples"] == 12
    assert [message for _, message in done.log if "fine-tune" in message] == [
        "The fine-tune starts.",
        "The fine-tune ends: success.",
    ]
    # The adapter answers in the hub as in transformers and PEFT from the checkpoint.
    card = AdapterRegistry(tmp_path / "registry").resolve(f"{base.name}-dolly")
    assert card.base.quantization == "nf4"
    assert sorted(card.peft.target_modules) == sorted(LAYERS[base.name])
    checkpoint = tmp_path / "results" / "checkpoint-4"
    weights = load_file(checkpoint / "adapter_model.safetensors")
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name)
    assert sha256_file(checkpoint / "adapter_model.safetensors") == sha256_file(
        tmp_path / "registry" / f"{base.name}-dolly" / "1" / "adapter_model.safetensors"
    )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), checkpoint
    )
    tokens = tokenizer("Instruction: Say what follows fox once\nResponse:", return_tensors="pt")
    logits = model(**tokens).logits
    with model.disable_adapter():
        assert not torch.allclose(model(**tokens).logits, logits, atol=1e-3)


def test_the_output_folder_can_be_trained_from_again(program, given: dict[str, Any], tmp_path: Path):
    assert program("quest_5_2", given).code == 0
    saved = FinetuneConfig.load(tmp_path / "results" / "finetune.yaml", {"output_dir": tmp_path / "again"})
    registry = AdapterRegistry(tmp_path / "registry")
    first = registry.resolve("gpt2-dolly@1")
    assert finetune(saved, registry).digest == first.digest


@pytest.mark.spec("0-N1")
@both
def test_specification_1_answers_from_the_checkpoint(program, given: dict[str, Any], tmp_path: Path):
    assert program("quest_5_2", given).code == 0
    checkpoint = tmp_path / "results" / "checkpoint-4"
    asked = program("quest_5_3", {"modelName": given["modelName"], "adapterPath": str(checkpoint)})
    assert (asked.code, asked.json["status"]) == (0, "success")


@pytest.mark.spec("0-F1", "0-F3", "0-F6", "0-C1")
def test_the_whole_text_is_learned_as_instruction_and_response(
    program, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[Base, Any]] = []
    build = trainer.build_trainer

    def spy(config: FinetuneConfig, base: Base, train: Any, *others: Any, **options: Any) -> Any:
        seen.append((base, train))
        return build(config, base, train, *others, **options)

    monkeypatch.setattr(trainer, "build_trainer", spy)
    assert program("quest_5_2", {**given, "maxRecords": 3}).code == 0
    ((base, train),) = seen
    texts = [base.tokenizer.decode(example.input_ids) for example in train.examples]
    assert sorted(texts) == [
        f"Instruction: Say what follows {word} once\nResponse: {ANSWERS[word]}{base.tokenizer.eos_token}"
        for word in ("fox", "one", "three")
    ]
    assert all(example.labels == example.input_ids for example in train.examples)
    assert base.tokenizer.pad_token == base.tokenizer.eos_token
    assert base.quantization == "nf4"
    assert base.compute_dtype == torch.float16


@pytest.mark.spec("0-X1", "0-G2", "0-O3")
def test_an_unreachable_dataset_ends_the_program_and_leaves_nothing(
    program, given: dict[str, Any], tmp_path: Path
):
    before = sorted(tmp_path.rglob("*"))
    done = program("quest_5_2", {**given, "dataset": GIVEN["dataset"]})
    assert (done.code, done.json) == (1, {"artifactsDir": "results", "status": "failure"})
    assert any(level == "ERROR" and "databricks-dolly-15k" in message for level, message in done.log)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modelName": "no/such-base"}, "no/such-base"),
        ({"loraConfig": {"r": 0}}, "loraConfig.r: "),
        ({"trainingParams": {"maxStep": 3}}, "trainingParams.maxStep: Extra"),
        ({"dataset": {"name": "missing.jsonl"}}, "missing.jsonl"),
        ({"loraConfig": {"targetModules": ["w_out"]}}, "w_out"),
    ],
)
@pytest.mark.spec("0-X1")
def test_bad_input_ends_the_program_and_leaves_nothing(
    program, given: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
):
    before = sorted(tmp_path.rglob("*"))
    done = program("quest_5_2", {**given, **change})
    assert (done.code, done.json["status"]) == (1, "failure")
    assert any(level == "ERROR" and message in logged for level, logged in done.log)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [(), ("no-such-file.json",), ("{",), ("{}",), ("{}", "{}")])
def test_an_input_that_is_none(program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple):
    monkeypatch.chdir(tmp_path)
    done = program("quest_5_2", *arguments)
    assert (done.code, done.json) == (1, {"artifactsDir": "", "status": "failure"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.spec("0-P1", "0-P2")
def test_neither_a_secret_nor_a_record_is_shown(
    program, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    done = program("quest_5_2", given)
    assert done.code == 0
    shown = done.out + done.err + "".join(message for _, message in done.log)
    written = "".join(
        path.read_text(errors="replace") for path in (tmp_path / "results").rglob("*") if path.is_file()
    )
    assert SECRET not in shown + written
    assert "what follows" not in shown + written


@pytest.mark.spec("0-P3")
def test_nothing_asks_the_network(program, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection is made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert program("quest_5_2", given).code == 0


@pytest.mark.spec("0-P4", "0-P5")
def test_the_program_holds_no_configuration_and_no_versions():
    text = (EXAMPLES / "quest_5_2.py").read_text(encoding="utf-8")
    values = ["nf4", "c_attn", "float16", "0.0002", "2e-4", "pip install", "sys.path"]
    assert [value for value in values if value in text] == []


@pytest.mark.spec("0-C1")
def test_the_dataset_is_streamed(program, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    import datasets

    asked: list[dict[str, Any]] = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append({"path": arguments[0] if arguments else options.get("path"), **options})
        raise ConnectionError("unreachable")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert program("quest_5_2", {**given, "dataset": GIVEN["dataset"]}).code == 1
    (options,) = asked
    assert options["path"] == "databricks/databricks-dolly-15k"
    assert (options["split"], options["streaming"]) == ("train", True)


def test_the_adapter_serves(program, given: dict[str, Any], tmp_path: Path, base: Path):
    assert program("quest_5_2", given).code == 0
    with AdapterHub.from_pretrained(str(base), tmp_path / "registry") as hub:
        answer = hub.generate("Say what follows fox once", adapter=f"{base.name}-dolly", max_tokens=4)
    assert answer.usage.completion_tokens == 4 or answer.finish_reason == "stop"
