"""What docstrings and the reference point to exists."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import adapterhub
from adapterhub import errors

PACKAGE = Path(adapterhub.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
_REFERENCE = re.compile(r"`(adapterhub(?:\.\w+)+)")
_MODULE_FILE = re.compile(r"`(\w+\.py)`")
REFERENCE_PAGE = (PACKAGE.parent / "docs" / "reference.md").read_text(encoding="utf-8")


def docstrings(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        text for node in ast.walk(tree) if isinstance(node, documented) and (text := ast.get_docstring(node))
    ]


def resolves(reference: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = reference.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for name in parts[split:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_references_in_docstrings_resolve(path: Path):
    files = {module.name for module in MODULES}
    for text in docstrings(path):
        for reference in _REFERENCE.findall(text):
            # `adapterhub.yaml` is a file of the user.
            assert reference == "adapterhub.yaml" or resolves(reference), reference
        for file in _MODULE_FILE.findall(text):
            assert file in files, file


@pytest.mark.parametrize("name", re.findall(r"^::: (adapterhub\S*)$", REFERENCE_PAGE, re.MULTILINE))
def test_the_reference_names_public_objects(name: str):
    assert resolves(name)
    if name == "adapterhub.errors":  # the page lists the whole tree
        return
    owner, _, last = name.rpartition(".")
    assert last in getattr(import_module(owner), "__all__", [last]), f"{name} is not on a package's face"


def test_the_reference_has_every_public_name():
    listed = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", REFERENCE_PAGE, re.MULTILINE)}
    missing = [
        name
        for name in adapterhub.__all__
        if name not in listed and not hasattr(errors, name) and f"adapterhub.{name}`" not in REFERENCE_PAGE
    ]
    assert not missing, f"docs/reference.md lacks {missing}"


def test_a_wrong_reference_is_found():
    assert not resolves("adapterhub.hub.AdapterHub.agreement")
    assert not resolves("adapterhub.nothing")
