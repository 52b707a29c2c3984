"""The progress bar shows step, loss and speed, and draws on stderr."""

import io

import pytest
from rich.console import Console

from adapterhub.training.progress import progress_bar
from adapterhub.training.trainer import TrainingStep


def test_the_bar_shows_where_the_run_stands():
    screen = io.StringIO()
    with progress_bar("training json", Console(file=screen, force_terminal=True, width=120)) as moved:
        moved(TrainingStep(step=3, steps=20, loss=1.23456, eval_loss=None, steps_per_second=2.5))
        moved(TrainingStep(step=4, steps=20, loss=1.1, eval_loss=0.9, steps_per_second=2.5))
    parts = ("training json", "4/20", "loss 1.100", "eval 0.900", "2.50 steps/s")
    assert [part for part in parts if part not in screen.getvalue()] == []


def test_stdout_stays_free_for_data(capsys: pytest.CaptureFixture[str]):
    with progress_bar("training") as moved:
        moved(TrainingStep(step=1, steps=1, loss=1.0, eval_loss=None, steps_per_second=1.0))
    out, err = capsys.readouterr()
    assert out == ""
    assert "1/1" in err
