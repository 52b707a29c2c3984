"""Ollama finds calls and reasoning in answers by texts in the template, which have to stand where it looks.

https://github.com/ollama/ollama/blob/main/tools/template.go and thinking/template.go
"""

from collections.abc import Iterator

import pytest

from adapterhub.export.ollama.deriving import derive_template
from adapterhub.export.ollama.go_syntax import Action, Branch, Nodes, Reference, Text, parse
from tests.export.ollama.families import prompt_source


def branches(nodes: Nodes) -> Iterator[Branch]:
    for node in nodes:
        if isinstance(node, Branch):
            yield node
            yield from branches(node.body)
            yield from branches(node.otherwise)


def names(branch: Branch) -> set[str]:
    operands = (operand for command in branch.pipeline.commands for operand in command)
    return {name for one in operands if isinstance(one, Reference) and one.root is None for name in one.path}


def first_text(nodes: Nodes) -> str:
    """Of a text, and of the bodies of branches; an action before it ends the search."""
    for node in nodes:
        if isinstance(node, Text):
            return node.text
        if isinstance(node, Branch):
            return first_text(node.body) or first_text(node.otherwise)
        if isinstance(node, Action):
            return ""
    return ""


@pytest.mark.parametrize(
    ("family", "sign"),
    [
        ("demo", "<tool_call>"),
        ("qwen2_5", "<tool_call>"),
        ("qwen3", "<tool_call>"),
        ("mistral-v3", "[TOOL_CALLS] ["),
        ("llama3_1", ""),  # Ollama looks for `{` then
    ],
)
def test_the_first_text_after_the_test_for_calls_is_what_calls_begin_with(family: str, sign: str):
    nodes = parse(derive_template(prompt_source(family)).text).nodes
    found = next(one for one in branches(nodes) if one.kind == "if" and "ToolCalls" in names(one))
    assert first_text(found.body).partition("{")[0].strip() == sign


def test_reasoning_stands_between_its_tags():
    nodes = parse(derive_template(prompt_source("qwen3")).text).nodes
    [found] = [
        one for one in branches(nodes) if "Thinking" in "".join(map(str, one.body[1:2])) and one.body[2:]
    ]
    first, _, last = found.body
    assert isinstance(first, Text)
    assert isinstance(last, Text)
    assert (first.text.strip(), last.text.strip()) == ("<think>", "</think>")
