"""`adapterhub finetune`: progress where there is no terminal, and what a signal leaves."""

import io
import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bitsandbytes.functional import has_avx512bf16

from adapterhub.cli.finetune import _coloured
from adapterhub.cli.progress import lines
from adapterhub.training import MaskedExample, finetuning
from tests.tiny import make_tokenizer

SIGNALS = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.fixture(params=SIGNALS)
def number(request: pytest.FixtureRequest) -> Iterator[int]:
    """A signal with its default effect, which ends the process."""
    number = getattr(signal, request.param)
    before = signal.signal(number, signal.SIG_DFL)
    yield number
    signal.signal(number, before)


@pytest.fixture
def config(tmp_path: Path, tiny_base: Path) -> Path:
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    (tmp_path / "data.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 8)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: pairs\nbase: {tiny_base}\ndata: {{train: data.jsonl}}\n"
        "train: {max_steps: 2, batch_size: 2, learning_rate: 0.005}\n"
    )
    return path


def test_a_run_shows_its_progress_where_there_is_no_terminal(own, config: Path):
    shown = own("finetune", config)
    assert (shown.code, shown.out) == (0, "pairs@1\n")
    assert "Training pairs ...\n" in shown.err
    assert "Training pairs: 2 of 2  loss " in shown.err


def test_a_plan_trains_nothing(own, config: Path, tmp_path: Path):
    shown = own("finetune", config, "--plan", "--plan-steps", "2")
    lines = dict(line.split(maxsplit=1) for line in shown.out.splitlines())
    assert list(lines) == ["base", "adapter", "computing", "memory", "measured", "steps", "time"]
    assert lines["steps"] == "2 (8 records)"
    plan = own("finetune", config, "--plan", "--plan-steps", "0", "--json").json
    assert plan["memory"]["total"] == sum(size for part, size in plan["memory"].items() if part != "total")
    assert (plan["steps"], plan["seconds"]) == (2, None)
    assert not (tmp_path / "registry").exists()


def test_a_signal_cleans_up_as_ctrl_c_does(
    own, config: Path, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stopped(settings: object, folder: Path, **_: object) -> None:
        (folder / "half").write_text("of an adapter")
        os.kill(os.getpid(), number)
        signal.pause()

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(finetuning, "train_in_output_folder", stopped)
    shown = own("finetune", config)
    assert (shown.code, "Stopped." in shown.err) == (128 + number, True)
    assert list(scratch.iterdir()) == []


def test_a_line_every_five_seconds_and_the_last(capsys: pytest.CaptureFixture[str]):
    seconds = 0.0
    show = lines("Training json", clock=lambda: seconds)
    for step in range(1, 13):
        seconds += 1.0
        show(step, 12, f"loss {12 - step}")
    assert capsys.readouterr().err.splitlines() == [
        "Training json: 5 of 12  loss 7",
        "Training json: 10 of 12  loss 2",
        "Training json: 12 of 12  loss 0",
    ]


def test_a_line_that_is_due_and_none_that_is_not(capsys: pytest.CaptureFixture[str]):
    show = lines("Training json", clock=lambda: 0.0)
    for step in range(1, 6):
        show(step, 5, "", due=step % 2 == 0)
        show(step, 9, "reading")
    err = capsys.readouterr().err
    assert err.splitlines() == [f"Training json: {step} of 5" for step in (2, 4, 5)]


def test_flags_replace_settings(own, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.jsonl").rename(tmp_path / "other.jsonl")
    shown = own(
        "finetune", config, "--train_path", "other.jsonl", "--val-path", "other.jsonl", "--output_dir", "results",
        "--report-to", "none", "--seed", 7, "--json",
    )  # fmt: skip
    assert shown.code == 0
    settings = shown.json["lineage"]["settings"]
    assert (settings["seed"], settings["records"]) == (7, 8)
    assert shown.json["evaluation"][0]["dataset_name"] == "other.jsonl"
    result = json.loads((tmp_path / "results" / "result.json").read_text())
    assert (result["status"], result["lastTrainStep"]) == ("success", 2)
    assert (tmp_path / "results" / "checkpoint-2" / "adapter_model.safetensors").is_file()


def test_a_run_says_what_it_computes_in_and_shows_no_record_where_there_is_no_terminal(own, config: Path):
    shown = own("finetune", config)
    expected = "bfloat16" if has_avx512bf16() else "float32"
    assert f"8 examples; computing in {expected} on cpu.\n" in shown.err
    assert "<|im_start|>" not in shown.out + shown.err


def test_a_line_for_every_logged_step(own, config: Path):
    text = config.read_text().replace("max_steps: 2", "max_steps: 4, logging_steps: 2")
    config.write_text(text)
    shown = own("finetune", config)
    lines = [line.split("  ")[0] for line in shown.err.splitlines() if " of 4" in line]
    assert lines == ["Training pairs: 2 of 4", "Training pairs: 4 of 4"]


def test_a_look_at_an_example_trains_nothing(own, config: Path, tmp_path: Path):
    shown = own("finetune", config, "--show-example")
    assert shown.code == 0
    text, counts = shown.out.rstrip("\n").rsplit("\n", 1)
    assert text == "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n[[two<|im_end|>]]"
    count = {
        part: len(make_tokenizer()(part).input_ids)
        for part in ("two<|im_end|>", re.sub(r"\[\[|]]", "", text))
    }
    learned, tokens = count.values()
    assert counts == f"({learned} of {tokens} tokens are learned)"
    assert not (tmp_path / "registry").exists()
    as_json = own("finetune", config, "--show-example", "--json").json
    assert as_json["parts"][-1] == {"text": "two<|im_end|>", "learned": True}
    assert (as_json["tokens"], as_json["learned"]) == (tokens, learned)


def test_a_look_at_an_example_shows_the_search_for_near_duplicates(own, config: Path, tmp_path: Path):
    turns = [{"role": "user", "content": "three"}, {"role": "assistant", "content": "four"}]
    with (tmp_path / "data.jsonl").open("a") as file:
        print(json.dumps({"messages": turns}), file=file)
    config.write_text(
        config.read_text().replace("train: data.jsonl", "train: data.jsonl, validation_share: 0.1")
    )
    shown = own("finetune", config, "--show-example")
    assert shown.code == 0
    assert "Reading pairs: 9 of 9  comparing near duplicates\n" in shown.err


def test_a_smoke_test_says_whether_it_works(own, config: Path, tmp_path: Path):
    shown = own("finetune", config, "--smoke")
    assert shown.code == 0
    assert re.fullmatch(
        r"It works: loss \d\.\d{3} to \d\.\d{3} in 2 steps, \d+\.\d steps/s\. Nothing was registered\.\n",
        shown.out,
    )
    figures = own("finetune", config, "--smoke", "--json").json
    assert (figures["steps"], len(figures["losses"]), figures["records_dropped"]) == (2, 2, 0)
    assert own("list", "--json").json == []


def test_a_wrong_setting_is_one_message_and_exit_code_1(own, config: Path, tmp_path: Path):
    before = sorted(tmp_path.rglob("*"))
    config.write_text(config.read_text() + "lora: {lora_alpha: much}\noutput_dri: x\n")
    shown = own("finetune", config)
    assert (shown.code, shown.out) == (1, "")
    assert "lora.lora_alpha: " in shown.err
    assert "output_dri: " in shown.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("no_color", ["", "1"])
def test_what_is_learned_is_green_on_a_terminal(no_color: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", no_color)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    example = MaskedExample((("a \x1b[2Jquestion\n", False), ("answer", True)), tokens=9, learned=2)
    shown = _coloured(example, terminal)
    learned = "[[answer]]" if no_color else "\x1b[32manswer\x1b[0m"
    assert learned in shown
    assert "a  [2Jquestion" in shown  # an escape sequence of the data is not sent to the terminal
    assert shown.endswith("\n(2 of 9 tokens are learned)")
