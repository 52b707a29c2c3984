"""docs/specs.md has every item of the specifications, and the tests that it names check them.

A test names its items with `@pytest.mark.spec("1-I3", ...)`.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
COUNTS = {
    "0": {"I": range(23), "O": 6, "X": 1, "F": 7, "D": 1, "C": 1, "P": 5, "G": 2, "N": 1},
    "1": {"I": range(7), "O": 1, "X": 1, "F": 10, "C": 1, "P": 5, "G": 3},
    "2": {"F": 19, "I": 1, "D": 3},
    "3": {"F": range(5), "C": 4},
    "4": {"D": 1, "F": 9, "C": 1, "N": 1},
}
ITEMS = sorted(
    f"{specification}-{kind}{number}"
    for specification, kinds in COUNTS.items()
    for kind, count in kinds.items()
    for number in (count if isinstance(count, range) else range(1, count + 1))
)
WITHOUT_TEST = ("No test: ", "Not built: ")


def named_items(decorators: list[ast.expr]) -> list[str]:
    """The items that `@pytest.mark.spec(...)` decorators name."""
    marks = [
        one for one in decorators if isinstance(one, ast.Call) and ast.unparse(one.func).endswith("mark.spec")
    ]
    return [ast.literal_eval(argument) for mark in marks for argument in mark.args]


def marked_tests() -> dict[str, set[str]]:
    """Each item with the tests that name it, as `folder/test_file.py::test_name`."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            functions = node.body if isinstance(node, ast.ClassDef) else [node]
            for function in functions:
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                    for item in named_items(function.decorator_list):
                        found[item].add(f"{path.relative_to(TESTS).as_posix()}::{function.name}")
    return found


def table() -> dict[str, str]:
    """Each item of docs/specs.md with the last cell of its row."""
    text = (ROOT / "docs" / "specs.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d-[A-Z]\d+) \|.*\| ([^|]+) \|$", text, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "an item has two rows"
    return dict(rows)


TABLE = table()
MARKED = marked_tests()


def test_the_table_has_every_item_and_no_other():
    assert sorted(TABLE) == ITEMS


def test_tests_name_items_that_exist():
    assert set(MARKED) <= set(ITEMS)


@pytest.mark.parametrize("item", ITEMS)
def test_an_item_names_its_tests_or_the_reason_why_there_is_none(item: str):
    cell = TABLE[item]
    named = set(re.findall(r"`([\w/]+\.py::\w+)`", cell))
    assert named <= MARKED[item], f"{sorted(named - MARKED[item])} do not exist or have no mark of {item}"
    if MARKED[item]:
        assert named, f"{sorted(MARKED[item])} check {item}"
    else:
        assert cell.startswith(WITHOUT_TEST)
        assert len(cell) > 30


def test_marks_are_found():
    code = "@pytest.mark.spec('1-I3', '1-O1')\n@pytest.mark.slow\n@mark.spec('1-X1')\ndef test(): pass"
    (function,) = ast.parse(code).body
    assert isinstance(function, ast.FunctionDef)
    assert named_items(function.decorator_list) == ["1-I3", "1-O1", "1-X1"]
