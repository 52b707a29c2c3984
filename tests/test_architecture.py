"""The layers of the package: imports point down only, and peers do not know each other."""

import ast
from graphlib import TopologicalSorter
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
    {"requests", "llama_cpp"},
    {"dataset", "tool_calling"},
    {"training", "export"},
    {"evaluation", "vllm"},
    {"hub"},
    {"demo", "langchain", "server"},
    {"cli", "deploy"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path, *, for_types: bool = True) -> set[str]:
    """What a file imports of the package, also within functions; those of a type checker may be left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not for_types:
        tree = WithoutTypeChecking().visit(tree)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("adapterhub"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("adapterhub")}
    return found


class WithoutTypeChecking(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        there = room(module)
        if there in ("", "__version__", here):
            continue
        assert LEVEL[there] < LEVEL[here], f"{here} may not import {module}"


def test_files_do_not_import_each_other_in_a_circle():
    """Imports for types alone do not count, nor do those of a package's face."""
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in MODULES}
    files = {name: path for name, path in names.items() if path.stem != "__init__"}

    def file_of(module: str) -> str:
        return module if module in files else module.rpartition(".")[0]

    imported = {
        name: {file_of(module) for module in imports(path, for_types=False)} for name, path in files.items()
    }
    order = TopologicalSorter({name: others & files.keys() - {name} for name, others in imported.items()})
    order.prepare()  # raises CycleError, which names the circle


def test_langchain_stays_out_of_the_core():
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0] == "langchain":
            continue
        assert "langchain" not in path.read_text(encoding="utf-8").replace("langchain-core", ""), path
