"""Headings and titles, against a CommonMark parser."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from adapterhub._deadline import Deadline
from adapterhub.agent_tools.content_rules.headings import comparable, headings

FLAT = (
    "",
    "text",
    "C#",
    "# A",
    "## B ##",
    "### C#",
    "#",
    "# #",
    "#x",
    "====",
    "---",
    "--",
    "***",
    "* * *",
    "```",
)
MORE = ("=", "= =", "# **E** `f`", "text ##", "####### seven", "#\tG", "<!-- a", "b -->", "# H\\#", "> quote")
LISTS = st.sampled_from((*FLAT, *MORE, "-", "- item", "2. two", "1. one", "+ x"))
INDENTED = st.sampled_from((*FLAT, *MORE, "~~~", " ---  ", "    # code", "  # D #", "    text", "\ttab"))


def reference(text: str) -> list[tuple[int, str]]:
    tokens = MarkdownIt("commonmark").parse(text)
    return [
        (int(token.tag[1]), " ".join(tokens[index + 1].content.split()))
        for index, token in enumerate(tokens)
        if token.type == "heading_open" and token.level == 0
    ]


@settings(max_examples=600)
@given((st.lists(LISTS, max_size=8) | st.lists(INDENTED, max_size=8)).map("\n".join))
@example("text\n```\n===")
@example("text\n    more\n---")
def test_the_same_headings_as_commonmark(text: str):
    found = [(heading.level, " ".join(heading.title.split())) for heading in headings(text, Deadline(5))]
    assert found == reference(text)


def test_front_matter_and_a_byte_order_mark_are_no_part_of_the_text():
    assert [*headings("---\ntitle: x\n---\n# A", Deadline(1))] == [(1, "A")]
    assert [*headings("---\n\n# A\n\ntext\n\n---\n", Deadline(1))] == [(1, "A")]
    assert [*headings("\ufeff# A\r\nB\r\n---\r\n", Deadline(1))] == [(1, "A"), (2, "B")]


@pytest.mark.parametrize(
    ("title", "same"),
    [
        ("**Summary**", "summary"),
        ("Cafe\u0301", "CAFÉ"),
        ("`code`  and\ttext", "code and text"),
        ("[Usage](https://example.com)", "usage"),
        ("snake_case_name", "Snake_Case_Name"),
        ("C\\#", "c#"),
        ("R&amp;D", "r&d"),
        ("STRASSE", "Straße"),
    ],
)
def test_titles_that_are_the_same(title: str, same: str):
    assert comparable(title) == comparable(same)


def test_titles_that_are_not():
    assert comparable("C#") != comparable("C")
    assert comparable("_a_b") != comparable("ab")
