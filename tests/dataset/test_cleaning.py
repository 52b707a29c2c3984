"""Cleaning: what it changes, what it leaves alone, and what it counts."""

import pytest
from pydantic import ValidationError

from adapterhub.dataset.cleaning import CleaningOptions, clean
from adapterhub.dataset.records import Record, Sample
from tests.dataset.samples import sample, texts

ALL = CleaningOptions(html_tags=True, html_entities=True, spaces=True, glued_sentences=True)


def cleaned(text: str, options: CleaningOptions = ALL) -> str:
    return texts(clean([sample("?", text)], options).kept)[0]


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("\ufeffa\u200bb\x00c\x9fd\u00ade", "abcde"),
        ("one\r\ntwo\rthree\u2028four\x85five", "one\ntwo\nthree\nfour\nfive"),
        ("\n\n    def f():\n        return 1  \n\n", "    def f():\n        return 1"),
        ("\U0001f468\u200d\U0001f469 می\u200cخواهم", "\U0001f468\u200d\U0001f469 می\u200cخواهم"),
        ("if a < b and b > c: x &lt; y <b>", "if a < b and b > c: x &lt; y <b>"),
        ("col1   col2", "col1   col2"),
    ],
)
def test_the_default_changes_only_what_nobody_sees(dirty, expected):
    assert cleaned(dirty, CleaningOptions()) == expected


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("<p>One<br/>two</p><p class='x'>three &amp; <b>four</b></p>", "One\ntwo\nthree & four"),
        ("<script>alert('<b>')</script>text<!-- note -->", "text"),
        ("a<STYLE>x</style>b <!-- <script> --> c <!-- open", "ab c <!-- open"),
        ("<think>a < b</think> <tool_call>{}</tool_call>", "<think>a < b</think> <tool_call>{}</tool_call>"),
        ("1<2 and 3>2; List<int> x", "1<2 and 3>2; List<int> x"),
        ("&laquo;Да&raquo;, сказал&nbsp;он&#33;", "«Да», сказал он!"),
        ("a  \t b \n\n\n\n  c", "a b\n\n  c"),
        ("- Вы где?- Дома.Скоро буду.", "- Вы где?\n- Дома. Скоро буду."),
        ("Version 2.Next e.g.This U.S.A. node.js", "Version 2.Next e.g.This U.S.A. node.js"),
    ],
)
@pytest.mark.spec("2-F10")
def test_what_is_asked_for(dirty, expected):
    assert cleaned(dirty) == expected


def test_replacements_are_literal():
    assert cleaned("what&! a.b a+b", CleaningOptions(replace={"&!": "", "a.b": "c"})) == "what c a+b"


def test_every_kind_of_change_is_counted_once_for_a_record():
    result = clean([sample("a\r\nb", "c\r\nd"), sample("x", "y"), sample("&amp;", "\x00 z ")], ALL)
    assert result.changed == {"line ends": 1, "HTML entities": 1, "control characters": 1, "spaces": 1}
    assert not result.dropped


def test_samples_that_do_not_change_stay_the_same_objects():
    one = sample("x", "y")
    assert clean([one], ALL).kept[0] is one


def test_what_becomes_empty_is_dropped_and_counted():
    result = clean([sample("<br>", "y"), sample("x", "\u200b"), sample("x", "y")], ALL)
    assert texts(result.kept) == ["y"]
    assert result.dropped == {"empty": 2}


def test_tool_results_and_calls_stay_as_they_are():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "&amp; "}}}
    messages = [
        {"role": "user", "content": "&amp;"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "<b>&amp;</b>\r\n"},
        {"role": "assistant", "content": "<b>done</b>", "note": "kept"},
    ]
    record = Record.model_validate({"messages": messages, "line": 3})
    kept = clean([Sample(record, "a")], ALL).kept[0].record
    expected = [{**messages[0], "content": "&"}, *messages[1:3], {**messages[3], "content": "done"}]
    assert [message.model_dump(exclude_none=True) for message in kept.messages] == expected
    assert kept.line == 3


@pytest.mark.spec("2-F10")
def test_glued_answers_become_a_record_each():
    options = CleaningOptions(split_answers="***")
    result = clean(
        [sample("joke", "one\nline\n* * *\ntwo\n***\n\n***\nthree ***"), sample("x", "y")], options
    )
    assert texts(result.kept) == ["one\nline", "two", "three ***", "y"]
    assert result.changed == {"split answers": 1}


def test_a_dialogue_is_not_split():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\n***\nc"}]
    record = Record.model_validate({"messages": messages * 2, "line": 1})
    assert len(clean([Sample(record, "a")], CleaningOptions(split_answers="***")).kept) == 1


def test_a_separator_is_one_word():
    with pytest.raises(ValidationError, match="split_answers"):
        CleaningOptions(split_answers="* * *")


def test_cleaning_takes_linear_time():
    """Runs that never end as the patterns want are the worst case of each pattern."""
    for text in (" " * 200_000 + "x", "<" * 200_000, "<b " * 70_000, "<script>" * 25_000, "<!--" * 50_000):
        assert cleaned("x" + text + "x")
