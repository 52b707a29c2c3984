"""Lines of a given width: what is kept, what is wrapped, and that doing it twice changes nothing."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapterhub.agent_tools.text_formatting.blocks import opens_block, split_blocks
from adapterhub.agent_tools.text_formatting.width import display_width
from adapterhub.agent_tools.text_formatting.wrap import Layout, format_text
from adapterhub.errors import ConfigError

PIECES = st.sampled_from(
    [
        "слово",
        "word",
        "-",
        "*",
        "—",
        "•",
        "1.",
        "12)",
        "#",
        "##",
        "|",
        ">",
        "```",
        "~~~",
        "---",
        "===",
        "`x`",
        "日本語",
        "👨\u200d👩\u200d👧",
        "❤️",
        "é",
        "a-b",
        "x.y",
        "\xa0",
        "\xa0-",
        "-",
        "-",
        "́",
        "```py",
        "|",
        "a",
    ]
)
SPACES = st.sampled_from([" ", "  ", "\n", "\n\n", "\n  ", "\n    ", "\t", "\r\n", "\u3000", "\n\t"])
NOTES = st.lists(st.tuples(PIECES | st.text(max_size=4), SPACES), max_size=40).map(
    lambda pairs: "".join(piece + space for piece, space in pairs)
)
LAYOUTS = st.builds(
    Layout,
    width=st.integers(12, 60),
    indent=st.integers(0, 5),
    first_line_indent=st.none() | st.integers(0, 6),
    align=st.sampled_from(["left", "right", "center", "justify"]),
    preserve_paragraphs=st.booleans(),
)


def solid(text: str) -> str:
    return "".join(text.split())


@settings(max_examples=400)
@given(NOTES, LAYOUTS)
@example("- ```\n  x\n", Layout())
@example("a \u00a0- b", Layout(width=12))
def test_nothing_is_lost_and_twice_is_once(text: str, layout: Layout):
    once = format_text(text, layout)
    assert solid(once) == solid(text)
    assert format_text(once, layout) == once


@settings(max_examples=200)
@given(NOTES, LAYOUTS)
def test_no_line_is_too_wide(text: str, layout: Layout):
    for block in split_blocks(format_text(text, layout)):
        if block.kind in ("alone", "code"):
            continue
        lines = format_text(" ".join([block.marker, *block.words]).strip(), layout).split("\n")
        for line in lines:
            words = line.split()
            words = words[1:] if words and words[0] == block.marker else words
            single = all(opens_block(word) or word == "\u0301" for word in words[1:])
            assert display_width(line) <= layout.width or single


def test_words_wrap_in_english_and_russian():
    assert format_text("The quick brown fox jumps", Layout(width=12)) == "The quick\nbrown fox\njumps"
    assert (
        format_text("Съешь же ещё этих мягких булок", Layout(width=14)) == "Съешь же ещё\nэтих мягких\nбулок"
    )


def test_width_is_what_is_seen():
    assert display_width("日本") == 4
    assert display_width("👨‍👩‍👧") == 2
    assert display_width("❤️") == 2
    assert display_width("й") == display_width("и\u0306") == 1
    assert format_text("日本 日本 日本", Layout(width=10)) == "日本 日本\n日本"


def test_paragraphs_lists_and_code_are_kept():
    text = (
        "Intro text that is long enough to wrap.\n\n"
        "- first item that wraps too\n  - nested item that wraps\n10. ten\n\n"
        "```python\nx  =  1   # a very long line of code that stays\n```\n# A heading that stays on its line"
    )
    assert format_text(text, Layout(width=20)) == (
        "Intro text that is\nlong enough to wrap.\n\n"
        "- first item that\n  wraps too\n  - nested item that\n    wraps\n10. ten\n\n"
        "```python\nx  =  1   # a very long line of code that stays\n```\n# A heading that stays on its line"
    )


def test_a_dash_does_not_begin_a_line():
    assert format_text("Москва — столица России", Layout(width=9)) == "Москва —\nстолица\nРоссии"
    assert format_text("aaaa - bb", Layout(width=5)) == "aaaa -\nbb"


def test_alignment():
    text = "one two three four"
    assert format_text(text, Layout(width=10, align="right")) == "   one two\nthree four"
    assert format_text(text, Layout(width=10, align="center")) == " one two\nthree four"
    assert format_text("one two three", Layout(width=9, align="justify")) == "one   two\nthree"


def test_indents_and_joined_paragraphs():
    assert format_text("a b\n\nc d", Layout(width=12, indent=2, first_line_indent=4)) == "    a b\n\n    c d"
    assert format_text("a b\n\nc d", Layout(preserve_paragraphs=False)) == "a b c d"
    with pytest.raises(ConfigError, match="An indent of 12"):
        Layout(width=12, indent=12)


def test_a_no_break_space_does_not_break():
    assert format_text("12\u00a0000 рублей", Layout(width=8)) == "12\u00a0000\nрублей"


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "a " * 100_000, "- " * 100_000, "```" * 66_000, "\n" * 200_000, "日" * 200_000]
)
def test_hostile_texts_take_no_time(text: str):
    before = time.thread_time()
    format_text(text)
    assert time.thread_time() - before < 2
