"""The guide's table is the matrix."""

from __future__ import annotations

from pathlib import Path

from adapterhub.capabilities import MATRIX, Remedy, Support

GUIDE = Path(__file__).parents[2] / "docs" / "capabilities.md"
HEAD = "| of `adapter_config.json` | in-process | llama.cpp | vLLM | SGLang |"
WORDS = {Remedy.PLAIN: "rewrite", Remedy.SVD: "approximate", Remedy.MERGE: "merge", Remedy.NONE: "no"}


def cell(support: Support) -> str:
    if support.runs:
        return f"yes, {support.note}" if support.note else "yes"
    return (
        f"{WORDS[support.remedy]}, it answers wrongly"
        if "in silence" in support.note
        else WORDS[support.remedy]
    )


def test_the_guide_has_the_matrix():
    rows = [
        f"| `{feature}` | {' | '.join(cell(support) for support in row.values())} |"
        for feature, row in MATRIX.items()
    ]
    text = GUIDE.read_text(encoding="utf-8")
    assert (
        text.partition(f"{HEAD}\n| --- | --- | --- | --- | --- |\n")[2].split("\n\n")[0].splitlines() == rows
    )


def test_the_guide_explains_every_word_of_it():
    text = GUIDE.read_text(encoding="utf-8")
    for word in WORDS.values():
        assert f"| {word} | " in text
