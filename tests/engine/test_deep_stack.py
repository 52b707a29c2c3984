"""Output formats that make a native library recurse thousands of levels deep do not end the process.

Each case is as deep as its limit of characters allows. A crash would end the tests too, so they run in a process of
their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise, product
from string import ascii_lowercase

import pytest

from adapterhub.base.locating import DEMO_BASE, locate_base
from adapterhub.engine.decoding.deep_stack import call_with_deep_stack
from adapterhub.engine.output_format import MAX_CHARACTERS
from adapterhub.errors import CapacityError

NAMES = ["r" + "".join(letters) for letters in product(ascii_lowercase, repeat=3)]


def rules(line: str, last: str) -> str:
    """A chain of rules, each of which names the next."""
    count = (MAX_CHARACTERS - 100) // len(line.format(NAMES[0], NAMES[1]))
    lines = [line.format(*names) for names in pairwise(NAMES[: count + 1])]
    return "".join([*lines, last.format(NAMES[count])])


def references(link: Callable[[str], object]) -> str:
    """A chain of definitions, each of which refers to the next."""
    count = (MAX_CHARACTERS - 200) // len(json.dumps({NAMES[0]: link(f"#/$defs/{NAMES[0]}")}))
    chain = {name: link(f"#/$defs/{following}") for name, following in pairwise(NAMES[: count + 1])}
    return json.dumps({"$defs": {**chain, NAMES[count]: {"type": "null"}}, "$ref": f"#/$defs/{NAMES[0]}"})


CASES = {
    "rules": ("grammar", "start: raaa\n" + rules("{}:{}\n", '{}:"a"\n')),
    "rules of two parts": ("grammar", "start: raaa\n" + rules('{}:"x" {}\n', '{}:"a"\n')),
    "optional rules": ("grammar", "start: raaa\n" + rules("{}:{}?\n", '{}:"a"\n')),
    "terminals": ("grammar", "start: RAAA\n" + rules("{}:{}\n", "{}:/a/\n").upper().replace("/A/", "/a/")),
    "arrays": ("schema", references(lambda name: {"items": {"$ref": name}})),
    "objects": ("schema", references(lambda name: {"properties": {"a": {"$ref": name}}})),
    "alternatives": ("schema", references(lambda name: {"anyOf": [{"$ref": name}]})),
}  # fmt: skip
COMPILE = """
import json, sys, threading
from transformers import PreTrainedTokenizerFast
from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.output_format import OutputFormat

tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1])
compiler = GrammarCompiler(tokenizer, len(tokenizer), [0])

def compile():
    for name, (kind, text) in json.load(sys.stdin).items():
        print(name, len(compiler.compile(OutputFormat(kind, text)).shortest_completion), flush=True)

threading.stack_size(2**20)  # as small as on some systems
thread = threading.Thread(target=compile)
thread.start()
thread.join()
"""


def test_as_deep_as_the_limit_of_characters_allows():
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(locate_base(DEMO_BASE) / "tokenizer.json")],
        input=json.dumps(CASES),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    shortest = {
        name: int(tokens) for name, _, tokens in (line.rpartition(" ") for line in done.stdout.splitlines())
    }
    assert shortest.keys() == CASES.keys(), done.stderr[-2000:]
    # An answer of rules of two parts has all their letters; an array, object or number may be one token.
    letters = CASES["rules of two parts"][1].count('"') // 2
    expected = {
        "rules": 1,
        "rules of two parts": letters,
        "optional rules": 0,
        "terminals": 1,
        "arrays": 1,
        "objects": 1,
    }
    assert {**shortest, "alternatives": 0} == {**expected, "alternatives": 0}
    assert shortest["alternatives"] > 0  # null


def test_errors_reach_the_caller():
    def fail() -> None:
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        call_with_deep_stack(fail)


def test_other_threads_keep_their_stack():
    before = threading.stack_size()
    assert call_with_deep_stack(lambda: "done") == "done"
    assert threading.stack_size() == before


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch):
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = threading.stack_size()
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(CapacityError, match="No thread can be started"):
        call_with_deep_stack(lambda: None)
    assert threading.stack_size() == before
