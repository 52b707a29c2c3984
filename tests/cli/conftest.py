"""The command line, run as a person would."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from adapterhub.cli.main import main


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch, capfd, tiny_registry: Path):
    """Runs `adapterhub ARGUMENTS` in this process, on a registry of three tiny adapters."""
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", str(tiny_registry))

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["adapterhub", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def own(monkeypatch, tmp_path: Path, run, tiny_adapters):
    """The same on an empty registry that the test may change."""
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", str(tmp_path / "registry"))
    return run


@pytest.fixture
def copy(monkeypatch, tmp_path: Path, run, tiny_registry: Path):
    """The same on a copy of the registry of three."""
    shutil.copytree(tiny_registry, tmp_path / "registry")
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", str(tmp_path / "registry"))
    return run
