"""Programs of examples/, run as a person would."""

from __future__ import annotations

import json
import logging
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str
    log: list[tuple[str, str]]
    """Level and message."""

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[..., Outcome]:
    """Runs a program of examples/ in this process; an argument that is no text is passed as JSON."""

    def run(name: str, *arguments: object) -> Outcome:
        texts = [one if isinstance(one, str) else json.dumps(one, default=str) for one in arguments]
        monkeypatch.setattr(sys, "argv", [name, *texts])
        caplog.clear()
        caplog.set_level(logging.INFO)
        code = 0
        try:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        logged = [(record.levelname, record.getMessage()) for record in caplog.records]
        return Outcome(code, *capsys.readouterr(), logged)

    return run
