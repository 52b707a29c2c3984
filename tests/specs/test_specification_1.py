"""Specification 1: `examples/quest_5_3.py` puts an adapter on its base, asks one question and reports the outcome."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub import AdapterHub
from adapterhub._files import sha256_file
from tests.specs.conftest import EXAMPLES
from tests.tiny import make_adapter, make_base

EXAM_PROMPT = "Instruction: Which genre is the hobbit?\nResponse:"
SECRET = "hf_" + "x" * 34


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2, as distilgpt2 is one."""
    return make_base(tmp_path_factory.mktemp("base") / "gpt2", "gpt2", chat_template=None)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """With the layers of specification 0."""
    folder = tmp_path_factory.mktemp("results") / "checkpoint-250"
    return make_adapter(folder, base, target_modules=["c_attn", "c_proj"])


@pytest.fixture
def given(base: Path, adapter: Path) -> dict[str, Any]:
    return {"modelName": str(base), "adapterPath": str(adapter)}


def plain(base: Path, adapter: Path, prompt: str, max_new_tokens: int) -> str:
    """What the specification's own steps print."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
    )
    tokens = tokenizer(prompt, return_tensors="pt")
    outputs = model.generate(
        input_ids=tokens.input_ids,
        attention_mask=tokens.attention_mask,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.decode(outputs[0], skip_special_tokens=True)


@pytest.mark.spec("1-I1", "1-I2", "1-I3", "1-I4", "1-O1", "1-X1", "1-G1", "1-G3")
@pytest.mark.spec("1-F1", "1-F3", "1-F4", "1-F6", "1-F7", "1-F8", "1-F9")
@pytest.mark.parametrize(("prompt", "tokens"), [(EXAM_PROMPT, 20), ("one two", 7), ("привет, ", 40)])
def test_the_answer_is_that_of_transformers_and_peft(
    program, given: dict[str, Any], base: Path, adapter: Path, prompt: str, tokens: int
):
    done = program("quest_5_3", {**given, "prompt": prompt, "maxNewTokens": tokens})
    assert done.code == 0
    assert done.json == {
        "status": "success",
        "exitCode": 0,
        "message": "ran without chaos",
        "result": plain(base, adapter, prompt, tokens),
    }


@pytest.mark.spec("1-I3", "1-I4", "1-I5", "1-I6")
def test_optional_fields_have_the_values_of_the_specification(program, given: dict[str, Any]):
    short = program("quest_5_3", given)
    whole = program("quest_5_3", {**given, "prompt": EXAM_PROMPT, "maxNewTokens": 20, "device": "auto"})
    assert short.json == whole.json
    assert short.json["result"].startswith(EXAM_PROMPT)


@pytest.mark.spec("1-I6", "1-F2", "1-C1")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_quantised_base(
    program, given: dict[str, Any], base: Path, adapter: Path, tmp_path: Path, dtype: str
):
    camel = {"loadIn4Bit": True, "bnb4BitComputeDtype": f"torch.{dtype}"}
    snake = {"load_in_4bit": True, "bnb_4bit_compute_dtype": dtype}
    results = [program("quest_5_3", {**given, "quantization": one}).json["result"] for one in (camel, snake)]
    with AdapterHub.from_pretrained(base, tmp_path, quantization="nf4", compute_dtype=dtype) as hub:
        hub.load_adapter(adapter, "checked")
        answer = hub.generate(EXAM_PROMPT, "checked", raw=True, max_tokens=20).text
    assert results == [EXAM_PROMPT + answer] * 2


@pytest.mark.spec("1-F5", "1-F10")
def test_what_happens_is_said_on_stderr_and_only_the_result_on_stdout(program, given: dict[str, Any]):
    done = program("quest_5_3", given)
    said = [message for _, message in done.log if not message.startswith("Load")]
    assert said[0] == "The adapter check starts."
    assert any("folder was found" in message for message in said)
    assert said[-1] == "The adapter check ends: success."
    assert done.out.count("\n") == 1


@pytest.mark.spec("1-G2", "1-X1", "1-G3")
def test_a_missing_adapter_is_logged_and_ends_the_program(program, given: dict[str, Any], tmp_path: Path):
    missing = tmp_path / "checkpoint-250"
    done = program("quest_5_3", {**given, "adapterPath": str(missing)})
    assert done.code == done.json["exitCode"] == 1
    assert done.json["status"] == "failure"
    (error,) = [message for level, message in done.log if level == "ERROR"]
    assert str(missing) in error
    assert "result" not in done.json


@pytest.mark.spec("1-X1")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"adapterPath": None}, "adapter_path"),
        ({"maxNewTokens": 0}, "max_new_tokens"),
        ({"prompt": ""}, "prompt"),
        ({"device": "abacus"}, "device"),
        ({"modelName": "./no-such-base"}, "no-such-base"),
        ({"quantization": {"loadIn4Bit": True, "bnb4BitComputeDtype": "torch.int3"}}, "bnb4BitComputeDtype"),
        ({"tempreature": 1}, "tempreature"),
    ],
)
def test_bad_input_ends_the_program(program, given: dict[str, Any], change: dict[str, Any], named: str):
    done = program("quest_5_3", {**given, **change})
    assert (done.code, done.json["status"]) == (1, "failure")
    assert named.lower().replace("_", "") in done.json["message"].lower().replace("_", "")


@pytest.mark.spec("1-X1")
def test_input_that_is_no_json(program, tmp_path: Path):
    for argument in ("{", "[1]", str(tmp_path / "missing.json")):
        assert program("quest_5_3", argument).json["status"] == "failure"
    assert program("quest_5_3").code == 1


@pytest.mark.spec("1-X1")
def test_an_adapter_with_damaged_weights(program, given: dict[str, Any], tmp_path: Path):
    (tmp_path / "adapter_config.json").write_bytes(
        (Path(given["adapterPath"]) / "adapter_config.json").read_bytes()
    )
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    done = program("quest_5_3", {**given, "adapterPath": str(tmp_path)})
    assert (done.code, done.json["status"]) == (1, "failure")


@pytest.mark.spec("1-I0", "1-P4")
def test_the_input_may_be_a_file_and_the_one_beside_the_program_has_the_values_of_the_specification(
    program, given: dict[str, Any], tmp_path: Path
):
    declared = json.loads((EXAMPLES / "quest_5_3.json").read_text(encoding="utf-8"))
    assert declared == {
        "modelName": "distilgpt2",
        "adapterPath": "../Quest_2/results/checkpoint-250",
        "prompt": EXAM_PROMPT,
        "maxNewTokens": 20,
        "device": "auto",
        "quantization": {"loadIn4Bit": True, "bnb4BitComputeDtype": "torch.float16"},
    }
    file = tmp_path / "input.json"
    file.write_text(json.dumps({**declared, **given}))
    assert program("quest_5_3", str(file)).json == program("quest_5_3", {**declared, **given}).json
    assert (
        'distilgpt2"' not in (EXAMPLES / "quest_5_3.py").read_text(encoding="utf-8").partition('"""\n\n')[2]
    )


@pytest.mark.spec("1-P1", "1-P2")
def test_neither_texts_nor_secrets_are_logged(program, given: dict[str, Any], monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    done = program("quest_5_3", {**given, "prompt": "my card number is 4929"})
    logged = done.err + " ".join(message for _, message in done.log)
    assert done.json["result"].startswith("my card number is 4929")
    assert "4929" not in logged
    assert SECRET not in logged + done.out


@pytest.mark.spec("1-P3")
def test_a_local_base_needs_no_network(program, given: dict[str, Any], monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert program("quest_5_3", given).code == 0


@pytest.mark.spec("1-P5", "1-F6")
def test_base_and_adapter_stay_as_they_are(program, given: dict[str, Any], base: Path, adapter: Path):
    files = [path for folder in (base, adapter) for path in sorted(folder.iterdir())]
    before = [sha256_file(path) for path in files]
    program("quest_5_3", {**given, "quantization": {"loadIn4Bit": True}})
    assert [sha256_file(path) for path in files] == before
    assert [path for folder in (base, adapter) for path in sorted(folder.iterdir())] == files
