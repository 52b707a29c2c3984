"""Lines of a given width: what is preserved, what is wrapped, and that formatting is idempotent."""

import textwrap
from itertools import accumulate

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from uniseg.linebreak import line_break_units

from adapterhub.agent_tools.templates import TemplateCollection
from adapterhub.agent_tools.text_formatting.blocks import parse_blocks, starts_block
from adapterhub.agent_tools.text_formatting.east_asian import split_east_asian
from adapterhub.agent_tools.text_formatting.fences import mark_fenced
from adapterhub.agent_tools.text_formatting.width import display_width
from adapterhub.agent_tools.text_formatting.wrap import TextLayout, format_text
from adapterhub.errors import ToolError
from tests.timing import least_seconds

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
LONG = "a long line that nobody would call short, with more words than fifty columns hold"
MEANINGFUL = (
    st.sampled_from(["日本語の文章です。", "（引用）", "「」", "ー", "ａB:", "한국어", LONG])
    | st.sampled_from(["A", "User:", "**Input:**", "foo:", "def f(x):", "{", "}", "[", "],", "=>", "<b>"])
    | st.sampled_from(["line\\", "\\"])
)
SPACES = st.sampled_from([" ", "  ", "\n", "\n\n", "\n  ", "\n    ", "\t", "\r\n", "\u3000", "\n\t"])
NOTES = st.lists(st.tuples(FRAGMENTS | MEANINGFUL | st.text(max_size=4), SPACES), max_size=40).map(
    lambda pairs: "".join(part + space for part, space in pairs)
)
LAYOUTS = st.builds(
    TextLayout,
    width=st.integers(12, 100),
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
    assert least_seconds(lambda: format_text(text), enough=2)[1] < 2


LINES = ["。\n", "日\n", "日 ", "foo:\n ", "User:\n", "a\\ ", "a  \n", "1. a\n\n   b\n\n", "[ー\n"]


@pytest.mark.parametrize("sign", LINES)
def test_hostile_line_breaks_are_fast(sign: str):
    text = (sign * 100_000)[:100_000]
    assert least_seconds(lambda: format_text(text), enough=2)[1] < 2


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


EAST_ASIAN = st.text(
    st.sampled_from("日本漢々〇テストっょー、。，！？：；「」『』（）・ゝァａＢ１ｱｶﾞ｡｢｣ㄅ〜"), min_size=2
)


@given(EAST_ASIAN)
def test_east_asian_text_is_broken_as_in_uax_14(word: str):
    assert split_east_asian(word) == [*line_break_units(word)]


@given(
    st.text(
        st.sampled_from("日本ー。、（）「」％￥“”…—abc1.-/:👍한국\u0301\ufe0f\u2060\u200d\xa0"), min_size=1
    )
)
def test_no_break_is_one_that_uax_14_forbids(word: str):
    allowed = set(accumulate(map(len, line_break_units(word))))
    assert set(accumulate(map(len, split_east_asian(word)))) <= allowed


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("This is an example 中文汉字测试段落内容中文汉字测试段落内容中文汉字测试段落内容。", 40),
        ("コンニチハコンニチハコンニチハ、せかい。", 12),
        ("日本語の（とても長い）文章。" * 20, 30),
        ("在 GPU 上使用 PyTorch 训练模型，然后保存。" * 9, 24),
    ],
)
def test_chinese_and_japanese_keep_the_width_and_can_be_joined_again(text: str, width: int):
    formatted = format_text(text, TextLayout(width=width))
    lines = formatted.split("\n")
    assert max(map(display_width, lines)) <= width
    assert min(map(display_width, lines[:-1])) >= width - 12
    assert not [line for line in lines if line[0] in "。、，）ー"]
    wide = format_text(text * 9, TextLayout(width=width + 40))
    assert format_text(wide, TextLayout(width=10_000)) == text * 9


MEANT = [
    "123 Main St\nSpringfield\nUSA",
    "Kind regards,\nBob\nExample Ltd",
    "User: a\nAssistant: b\nUser: " + "c " * 30 + "c\nAssistant:",
    "Line one  \nline two\\\nline three",
    '{\n  "a": 1,\n  "b": [1, 2]\n}',
    '[\n  {"name": "' + "x" * 100 + '", "value": 1},\n  {"name": "y"}\n]',
    "def f(x):\n    if x:\n        return 1\n\n    return 2\n\nf(1)",
    "for (;;) {\n\tx();\n}\n\nEnd of the code.",
    "<ul>\n  <li>a</li>\n</ul>",
    "1. install\n\n   Run pip.\n\n2. run",
    "- a\n  - b\n\n    of b\n\n  of a\n- c",
    "北京市朝阳区\n建国路一号\n中国",
    "The code:\n\n```\nx\n\ny\n```",
    "x = 1\ny = 2\nprint(x + y)",
]


@pytest.mark.parametrize("text", MEANT)
def test_line_breaks_that_mean_something_stay(text: str):
    assert format_text(text, TextLayout(width=60)) == "\n".join(
        wrapped
        for line in text.split("\n")
        for wrapped in (textwrap.wrap(line, 60) if line.startswith("User:") else [line])
    )


def test_a_hard_break_of_a_long_line_stays():
    long = "word " * 14 + "end"
    assert format_text(f"{long}\\\nnext") == f"{long}\\\nnext"
    assert format_text(f"{long}  \nnext") == f"{long}  \nnext"
    assert format_text(f"{long}\nnext") == f"{long} next"


def test_wrapped_prose_is_wrapped_anew():
    prose = (
        "The quick brown fox jumps over the lazy dog and runs into the deep dark wood, where nobody ever goes. "
        * 5
    )
    for width in (60, 72, 80, 100):
        wrapped = "\n".join(textwrap.wrap(prose, width))
        assert format_text(wrapped, TextLayout(width=200)) == "\n".join(textwrap.wrap(prose, 200))


def test_the_templates_keep_their_lines():
    entries = [{"input": "a", "output": "b"}, {"user": "a", "assistant": "b"}]
    for name, template in TemplateCollection().items():
        if name == "json_schema":
            fields = {
                "title": "P",
                "properties": [{"name": "a"}, {"name": "b", "type": "array", "items": "string"}],
            }
        else:
            fields = dict.fromkeys((*template.required, *template.optional), "One line.\nAnother line.")
            fields |= {"examples": entries[:1], "history": entries[1:]}
        known = (*template.required, *template.optional)
        text = template.render({key: value for key, value in fields.items() if key in known}).text
        formatted = format_text(text, TextLayout(width=60))
        assert formatted.split() == text.split()
        assert [line.split() for line in formatted.split("\n")] == [
            line.split() for line in text.split("\n")
        ], name
