"""Lines of a given width: what is preserved, what is wrapped, and that formatting is idempotent."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from adapterhub.agent_tools.text_formatting.blocks import parse_blocks, starts_block
from adapterhub.agent_tools.text_formatting.fences import mark_fenced
from adapterhub.agent_tools.text_formatting.width import display_width
from adapterhub.agent_tools.text_formatting.wrap import TextLayout, format_text
from adapterhub.errors import ToolError

FRAGMENTS = st.sampled_from(
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
NOTES = st.lists(st.tuples(FRAGMENTS | st.text(max_size=4), SPACES), max_size=40).map(
    lambda pairs: "".join(part + space for part, space in pairs)
)
LAYOUTS = st.builds(
    TextLayout,
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
@example("- ```\n  x\n", TextLayout())
@example("a \u00a0- b", TextLayout(width=12))
def test_no_character_is_lost_and_formatting_is_idempotent(text: str, layout: TextLayout):
    once = format_text(text, layout)
    assert solid(once) == solid(text)
    assert format_text(once, layout) == once


@settings(max_examples=200)
@given(NOTES, LAYOUTS)
def test_no_line_is_too_wide(text: str, layout: TextLayout):
    for block in parse_blocks(format_text(text, layout)):
        if block.kind in ("line", "code"):
            continue
        lines = format_text(" ".join([block.marker, *block.words]).strip(), layout).split("\n")
        for line in lines:
            words = line.split()
            words = words[1:] if words and words[0] == block.marker else words
            single = all(starts_block(word) or word == "\u0301" for word in words[1:])
            assert display_width(line) <= layout.width or single


def test_words_wrap_in_english_and_russian():
    assert format_text("The quick brown fox jumps", TextLayout(width=12)) == "The quick\nbrown fox\njumps"
    assert (
        format_text("Съешь же ещё этих мягких булок", TextLayout(width=14))
        == "Съешь же ещё\nэтих мягких\nбулок"
    )


def test_display_width():
    assert display_width("日本") == 4
    assert display_width("👨‍👩‍👧") == 2
    assert display_width("❤️") == 2
    assert display_width("й") == display_width("и\u0306") == 1
    assert format_text("日本 日本 日本", TextLayout(width=10)) == "日本 日本\n日本"


def test_paragraphs_lists_and_code_are_preserved():
    text = (
        "Intro text that is long enough to wrap.\n\n"
        "- first item that wraps too\n  - nested item that wraps\n10. ten\n\n"
        "```python\nx  =  1   # a very long line of code that stays\n```\n# A heading that stays on its line"
    )
    assert format_text(text, TextLayout(width=20)) == (
        "Intro text that is\nlong enough to wrap.\n\n"
        "- first item that\n  wraps too\n  - nested item that\n    wraps\n10. ten\n\n"
        "```python\nx  =  1   # a very long line of code that stays\n```\n# A heading that stays on its line"
    )


def test_a_dash_does_not_begin_a_line():
    assert format_text("Москва — столица России", TextLayout(width=9)) == "Москва —\nстолица\nРоссии"
    assert format_text("aaaa - bb", TextLayout(width=5)) == "aaaa -\nbb"


def test_alignment():
    text = "one two three four"
    assert format_text(text, TextLayout(width=10, align="right")) == "   one two\nthree four"
    assert format_text(text, TextLayout(width=10, align="center")) == " one two\nthree four"
    assert format_text("one two three", TextLayout(width=9, align="justify")) == "one   two\nthree"


def test_indents_and_joined_paragraphs():
    assert (
        format_text("a b\n\nc d", TextLayout(width=12, indent=2, first_line_indent=4)) == "    a b\n\n    c d"
    )
    assert format_text("a b\n\nc d", TextLayout(preserve_paragraphs=False)) == "a b c d"
    with pytest.raises(ToolError, match="An indent of 12"):
        TextLayout(width=12, indent=12)


def test_a_no_break_space_does_not_break():
    assert format_text("12\u00a0000 рублей", TextLayout(width=8)) == "12\u00a0000\nрублей"


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "a " * 100_000, "- " * 100_000, "```" * 66_000, "\n" * 200_000, "日" * 200_000]
)
def test_hostile_texts_are_fast(text: str):
    before = time.thread_time()
    format_text(text)
    assert time.thread_time() - before < 2


FENCE_LINES = st.sampled_from(
    [
        "```",
        "````",
        "~~~",
        "~~~~",
        "```py",
        "``` a`b",
        "   ```",
        "  ~~~",
        "    ```",
        "\t~~~",
        "``` ",
        "``",
        "text",
        "",
    ]
)


@settings(max_examples=300)
@given(st.sampled_from(["```", "~~~", "   ```py", "````"]), st.lists(FENCE_LINES, max_size=8))
def test_fences_open_and_close_as_in_commonmark(opening: str, lines: list[str]):
    for count in range(len(lines) + 1):
        text = [opening, *lines[:count], "x"]
        (fence, *_) = MarkdownIt("commonmark").parse("\n".join(text))
        is_open = fence.map == [0, len(text)]
        assert list(mark_fenced(text))[-1] == ("x", is_open)
        if not is_open:
            break
