"""The layers of the package: imports point down only, and peers do not know each other."""

import ast
from pathlib import Path

import pytest

import adapterhub

PACKAGE = Path(adapterhub.__file__).parent

# Each layer may import the layers below it and modules of its own room; rooms in one layer are peers.
LAYERS = [
    {"errors", "fleet", "_lazy", "_deadline", "_user_code", "_processor"},
    {"_files", "_patterns", "_yaml"},
    {"config", "_compiling"},
    {"agent_tools", "configs", "peft_format", "reports"},
    {"base", "capabilities"},
    {"registry"},
    {"lora", "routing"},
    {"gguf"},
    {"engine"},
    {"requests", "llama_cpp", "vllm"},
    {"dataset", "tool_calling"},
    {"training", "export"},
    {"evaluation"},
    {"hub"},
    {"demo", "langchain", "server"},
    {"cli", "deploy"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("adapterhub"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("adapterhub")}
    return found


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        there = room(module)
        if there in ("", "__version__", here):
            continue
        assert LEVEL[there] < LEVEL[here], f"{here} may not import {module}"


def test_langchain_stays_out_of_the_core():
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0] == "langchain":
            continue
        assert "langchain" not in path.read_text(encoding="utf-8").replace("langchain-core", ""), path
