"""Cleaning the text of messages: by default only what nobody sees; what may change meaning has to be asked for."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Annotated

import regex
from pydantic import Field

from adapterhub.dataset.records import Message, Record, Sample
from adapterhub.dataset.stages import StageOptions, StageResult

# Joiners (U+200C, U+200D) stay: Persian words and emoji are written with them.
_CONTROL = regex.compile(r"[[\p{Cc}\uFEFF\u200B\u2060\u00AD\uFFFE\uFFFF]--[\t\n\r\u0085]]", regex.V1)
_LINE_ENDS = re.compile(r"\r\n|[\r\u0085\u2028\u2029]")
_INNER_SPACES = re.compile(r"(?<=\S)[^\S\n]+(?=\S)")
_SPACES_AT_LINE_END = re.compile(r"(?<![^\S\n])[^\S\n]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
# Elements of HTML only: `<think>`, `<tool_call>` and `a < b` are none.
_UNSEEN = regex.compile(
    r"(?i)(?P<start><(?P<what>script|style)\b[^<>]*>|<!--)|</(?P<what>script|style)\s*>|-->"
)
_BREAK = re.compile(r"(?i)<(?:br|hr)\b[^<>]*>|</(?:p|div|li|tr|h[1-6]|blockquote|ul|ol|table|pre)\s*>")
_TAG = re.compile(
    r"(?i)</?(?:a|abbr|b|big|blockquote|body|center|cite|code|dd|del|div|dl|dt|em|font|h[1-6]|head|html|i|img|ins|li"
    r"|link|meta|noindex|nobr|ol|p|pre|s|script|small|span|strike|strong|style|sub|sup|table|tbody|td|th|thead|title|tr"
    r"|tt|u|ul)(?:\s[^<>]*)?/?>"
)
_GLUED_SENTENCES = regex.compile(r"(?<=\p{Ll}\p{Ll}[.!?…])(?=\p{Lu})")
_GLUED_TURNS = regex.compile(r"(?<=[.!?…])(?=[-–—]\s?\p{Lu})")

_Step = tuple[str, Callable[[str], str]]


class CleaningOptions(StageOptions):
    """What is cleaned in system prompts, and in users' and the assistant's messages."""

    control_characters: bool = True
    """Remove control characters, byte order marks, soft hyphens and zero-width spaces."""
    line_ends: bool = True
    """Write every line end as a line feed."""
    ends: bool = True
    """Remove white space at the end of a message, and empty lines at its beginning."""
    html_tags: bool = False
    """Remove HTML tags and comments; `<br>` and the end of a paragraph become line feeds. Other tags stay."""
    html_entities: bool = False
    """Write `&quot;`, `&#39;` and the like as the characters that they stand for."""
    spaces: bool = False
    """Write runs of spaces inside a line as one, and more than one empty line as one; remove spaces at line ends and
    before a message."""
    glued_sentences: bool = False
    """Put a space between sentences, and a line feed before a turn of a dialogue, where it was lost: `Yes.- Why?`."""
    replace: dict[Annotated[str, Field(min_length=1)], str] = Field(default_factory=dict)
    """Texts and what to write in their places, before anything else."""
    split_answers: str | None = Field(None, pattern=r"^\S+$")
    """What stands alone on a line between several answers glued into one, such as `***` or `* * *`. The record
    becomes one for each answer; only records with a single answer, at their end, are split."""


def clean(samples: Iterable[Sample], options: CleaningOptions) -> StageResult:
    """Cleans samples, and drops those of which a user's message or an answer is empty then.

    Args:
        samples: The samples.
        options: What is cleaned.
    """
    result, steps = StageResult(), _steps(options)
    for sample in samples:
        done: set[str] = set()
        record = _cleaned(sample.record, steps, done)
        result.changed.update(done)
        parts = _split(record, options.split_answers) if options.split_answers else [record]
        result.changed["split answers"] += len(parts) > 1
        for part in parts:
            if any(_is_empty(message) for message in part.messages):
                result.dropped["empty"] += 1
            else:
                result.kept.append(sample if part is sample.record else replace(sample, record=part))
    result.changed = +result.changed
    return result


def _steps(options: CleaningOptions) -> list[_Step]:
    """What to do, in the order in which it is done."""
    chosen: dict[str, tuple[bool, Callable[[str], str]]] = {
        "replaced": (bool(options.replace), lambda text: _replaced(text, options.replace)),
        "HTML tags": (options.html_tags, _without_tags),
        "HTML entities": (options.html_entities, html.unescape),
        "line ends": (options.line_ends, lambda text: _LINE_ENDS.sub("\n", text)),
        "control characters": (options.control_characters, lambda text: str(_CONTROL.sub("", text))),
        "glued sentences": (options.glued_sentences, _unglued),
        "spaces": (options.spaces, _with_single_spaces),
        "ends": (options.ends, lambda text: text.lstrip("\n").rstrip()),
    }
    return [(name, step) for name, (wanted, step) in chosen.items() if wanted]


def _cleaned(record: Record, steps: list[_Step], done: set[str]) -> Record:
    messages = [_cleaned_message(message, steps, done) for message in record.messages]
    if all(new is old for new, old in zip(messages, record.messages, strict=True)):
        return record
    return record.model_copy(update={"messages": messages})


def _cleaned_message(message: Message, steps: list[_Step], done: set[str]) -> Message:
    if message.role == "tool" or not message.content:  # what a tool returned is data
        return message
    text = message.content
    for name, step in steps:
        after = step(text)
        if after != text:
            done.add(name)
            text = after
    return message if text == message.content else message.model_copy(update={"content": text})


def _is_empty(message: Message) -> bool:
    return message.role in ("user", "assistant") and not message.content and not message.tool_calls


def _split(record: Record, separator: str) -> list[Record]:
    """A record for each of the answers that are glued into one."""
    *before, last = record.messages
    is_single = last.role == "assistant" and all(message.role != "assistant" for message in before)
    answers = list(_parts(last.content or "", separator)) if is_single else []
    if len(answers) < 2:
        return [record]
    return [
        record.model_copy(update={"messages": [*before, last.model_copy(update={"content": answer})]})
        for answer in answers
    ]


def _parts(text: str, separator: str) -> Iterator[str]:
    """The texts between lines that hold only the separator; empty ones are left out."""
    lines: list[str] = []
    for line in [*text.split("\n"), separator]:
        if "".join(line.split()) != separator:
            lines.append(line)
            continue
        if part := "\n".join(lines).strip("\n"):
            yield part
        lines = []


def _replaced(text: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


def _without_tags(text: str) -> str:
    if "<" not in text:
        return text
    return _TAG.sub("", _BREAK.sub("\n", _without_unseen(text)))


def _without_unseen(text: str) -> str:
    """The text without scripts, styles and comments; a pattern for the whole of them could take quadratic time."""
    parts: list[str] = []
    done, begun = 0, None
    for mark in _UNSEEN.finditer(text):
        if mark["start"]:
            begun = begun or mark
        elif begun and (begun["what"] or "").lower() == (mark["what"] or "").lower():
            parts.append(text[done : begun.start()])
            done, begun = mark.end(), None
    return "".join([*parts, text[done:]])


def _unglued(text: str) -> str:
    return str(_GLUED_SENTENCES.sub(" ", _GLUED_TURNS.sub("\n", text)))


def _with_single_spaces(text: str) -> str:
    return _BLANK_LINES.sub("\n\n", _SPACES_AT_LINE_END.sub("", _INNER_SPACES.sub(" ", text))).strip()
