"""`adapterhub finetune`: progress where there is no terminal, and what a signal leaves."""

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.cli.progress import lines
from adapterhub.training import finetuning

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
    monkeypatch.setattr(finetuning, "train_adapter", stopped)
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
