"""The code blocks of README and docs run, and print what they are said to print.

The Python blocks of a document run in order, in one namespace; a `text` block right after one is its output. In a
`console` block every line after `$` is run, by a shell unless it is a plain `adapterhub` command, and what follows
is its output. `...` stands for anything.
"""

import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers.utils import logging

from adapterhub.cli.main import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# They set up or need a machine of their own; `make test` and `make demo` run as a whole in CI or take too long here.
NOT_RUN = ("make ", "pip ", "git ", "python -m ", "sh examples/demo/make_demo.sh")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    code: str
    line: int
    follows: bool
    """Nothing but blank lines lies between the block before and this one."""


def blocks(path: Path) -> list[Block]:
    text, end, found = path.read_text(encoding="utf-8"), 0, []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match[1], match[2], line, not text[end : match.start()].strip()))
        end = match.end()
    return found


def same(wanted: str, got: str) -> bool:
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(wanted.strip() + "\n", got.strip() + "\n", options)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    """A folder that looks like a checkout, which the blocks may change."""
    for name in ("adapters", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "adapters" / "json" / "1", tmp_path / "my-lora")
    (tmp_path / "my-lora" / "card.json").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def run_python(block: Block, namespace: dict[str, object], path: Path) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * block.line + block.code, str(path), "exec"), namespace)
    return printed.getvalue()


def run_shell(command: str) -> tuple[int, str]:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def run_adapterhub(command: str) -> tuple[int, str]:
    """The command line in this process, which has torch imported already: seconds less for each command."""
    printed, code = io.StringIO(), 0
    logging.disable_progress_bar()  # a process of its own says so before it imports transformers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", shlex.split(command))
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
    logging.enable_progress_bar()
    return code, printed.getvalue()


def run_console(block: Block) -> None:
    for part in re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]:
        command, _, wanted = part.partition("\n")
        while command.endswith("\\"):
            more, _, wanted = wanted.partition("\n")
            command = f"{command[:-1]} {more}"
        if command.startswith(NOT_RUN):
            continue
        plain = command.startswith("adapterhub ") and not set("|>&") & set(command)
        code, printed = run_adapterhub(command) if plain else run_shell(command)
        assert code == 0 or wanted, f"{command}\n{printed}"
        if wanted.strip():
            assert same(wanted, printed), f"{command}\n{printed}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_blocks_run(path: Path, checkout: Path):
    namespace: dict[str, object] = {}
    output = None
    for block in blocks(path):
        if block.language == "text" and block.follows and output is not None:
            assert same(block.code, output), f"{path.name}, line {block.line}, printed:\n{output}"
        output = run_python(block, namespace, path) if block.language == "python" else None
        if block.language == "console":
            run_console(block)


def test_every_document_is_in_the_navigation():
    import yaml

    listed = re.findall(
        r"[\w-]+\.md", yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    )
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_checker_can_fail():
    assert same("a ... c", "a b c")
    assert not same("a ... c", "a b d")
