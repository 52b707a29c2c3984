"""The code blocks of README and docs run, and print what the documents show.

The Python blocks of a document run in order, in one namespace; a `text` block right after one is its output. In a
`console` block every line after `$` is run, by a shell unless it is a plain `adapterhub` command, and what follows
is its output. `...` stands for anything.
"""

import ast
import contextlib
import doctest
import importlib
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
import yaml
from transformers.utils import logging

from adapterhub.cli.main import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
# What people may import: these packages. Their modules may be renamed at any time.
FACES = {
    "adapterhub", "adapterhub.agent_tools", "adapterhub.agent_tools.templates", "adapterhub.base",
    "adapterhub.capabilities", "adapterhub.demo",
    "adapterhub.engine", "adapterhub.errors", "adapterhub.evaluation", "adapterhub.export", "adapterhub.export.ollama",
    "adapterhub.langchain", "adapterhub.langchain.tools", "adapterhub.llama_cpp",
    "adapterhub.lora", "adapterhub.peft_format", "adapterhub.registry", "adapterhub.requests", "adapterhub.routing",
    "adapterhub.dataset", "adapterhub.server", "adapterhub.training",
}  # fmt: skip
# They set up or need a machine of their own; `make test` and `make demo` run as a whole in CI or take too long here.
NOT_RUN = ("make ", "pip ", "git ", "python -m ", "export ", ".venv/", "sh examples/demo")
_ENVIRONMENT = re.compile(r"(?:[A-Z_]+=\S* )*")  # variables that are set for one command
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
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
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
    logging.disable_progress_bar()  # the command sets a variable for this before it imports transformers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", shlex.split(command))
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
    logging.enable_progress_bar()
    return code, printed.getvalue()


def is_run(command: str) -> bool:
    return not _ENVIRONMENT.sub("", command, count=1).startswith(NOT_RUN)


def run_console(block: Block) -> None:
    for part in re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]:
        command, _, wanted = part.partition("\n")
        while command.endswith("\\"):
            more, _, wanted = wanted.partition("\n")
            command = f"{command[:-1]} {more}"
        if not is_run(command):
            continue
        plain = command.startswith("adapterhub ") and not set("|>&") & set(command)
        code, printed = run_adapterhub(command) if plain else run_shell(command)
        assert code == 0 or wanted, f"{command}\n{printed}"
        if wanted.strip():
            assert same(wanted, printed), f"{command}\n{printed}"


def imported(code: str) -> set[str]:
    """The modules of adapterhub that code imports from, also in a function."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {module for module in found if module.split(".")[0] == "adapterhub"}


def paths_in(text: str) -> set[str]:
    """What a document names between backticks that looks like a path of this repository."""
    return set(re.findall(r"`((?:adapterhub|tests|docs|examples|benchmarks)(?:/[\w.]+)+/?)`", text))


DOCUMENTS_WITH_BLOCKS = [path for path in DOCUMENTS if blocks(path)]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", DOCUMENTS_WITH_BLOCKS, ids=lambda path: path.relative_to(ROOT).as_posix())
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
    listed: list[str] = []

    def walk(node: object) -> None:
        if isinstance(node, str):
            listed.append(node)
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(child)

    walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize(
    "path", [*DOCUMENTS_WITH_BLOCKS, *EXAMPLES], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_documents_and_examples_import_from_package_faces(path: Path):
    text = path.read_text(encoding="utf-8")
    codes = [text] if path.suffix == ".py" else [one.code for one in blocks(path) if one.language == "python"]
    deep = sorted({module for code in codes for module in imported(code)} - FACES)
    assert not deep, (
        f"{path.relative_to(ROOT)} imports from {deep}; export the names from a package's __init__"
    )


@pytest.mark.parametrize("face", sorted(FACES))
def test_a_face_names_what_it_exports(face: str):
    module = importlib.import_module(face)
    assert all(hasattr(module, name) for name in getattr(module, "__all__", ()))


def test_deep_imports_are_found():
    code = "import adapterhub.engine.stats\ndef f():\n    from adapterhub.lora.delta import LoraDelta\nimport torch\n"
    assert imported(code) == {"adapterhub.engine.stats", "adapterhub.lora.delta"}


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_paths_of_the_internals_exist(name: str):
    found = paths_in((ROOT / name).read_text(encoding="utf-8"))
    assert len(found) > 5
    missing = sorted(path for path in found if not (ROOT / path).exists())
    assert not missing, f"{name} names {missing}, which do not exist"


def test_the_architecture_counts_the_files_of_a_request():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    path = text.partition("passes these files")[2].partition("\nThat is ")
    rows = [line for line in path[0].splitlines() if line.startswith("| `adapterhub/")]
    assert path[2].split()[0] == str(len(rows))


def test_the_architecture_has_a_counterpart_for_every_class_of_engine_and_lora():
    table = (DOCS / "architecture.md").read_text(encoding="utf-8").partition("## Counterparts")[2]
    table = table.partition("\n## ")[0]
    ours = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    public = {
        name
        for face in ("adapterhub.engine", "adapterhub.lora")
        for name in importlib.import_module(face).__all__
        if isinstance(getattr(importlib.import_module(face), name), type)
    }
    assert not public - ours, f"no counterpart in docs/architecture.md for {sorted(public - ours)}"


def test_the_variables_of_a_command_do_not_decide_whether_it_is_run():
    assert not is_run("OMP_NUM_THREADS=1 python -m benchmarks.proof --shape 1.1b")
    assert is_run("COLUMNS=80 adapterhub list")


def test_the_checker_can_fail():
    assert same("a ... c", "a b c")
    assert not same("a ... c", "a b d")
