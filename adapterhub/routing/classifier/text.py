"""The text of a request that is classified: its segments, without fenced code, and its script.

A short request among two dozen words of other text is lost in one bag of words. So each sentence is classified too,
and of long sentences without full stops, overlapping windows of words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import regex

MAX_REQUEST_CHARS = 4_000
"""Characters of a request that are read: half of them from its beginning, half from its end."""
MAX_SEGMENTS = 24
"""Sentences and windows of one request that are classified in addition to the whole."""
MAX_SENTENCE_WORDS = 20
"""Words of a sentence above which it is split into windows."""
WINDOW_WORDS = 10
"""Words of a window; each window overlaps the one before by half."""
_FENCED_CODE = regex.compile(r"```.*?(?:```|\Z)", regex.DOTALL)
_SENTENCE_MARK = regex.compile(r"[.!?…。！？\n]")
_SENTENCE_END = regex.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n+")
_SCRIPTS = {
    "latin": r"\p{Latin}",
    "cyrillic": r"\p{Cyrillic}",
    "greek": r"\p{Greek}",
    "armenian": r"\p{Armenian}",
    "hebrew": r"\p{Hebrew}",
    "arabic": r"\p{Arabic}",
    "devanagari": r"\p{Devanagari}",
    "thai": r"\p{Thai}",
    "georgian": r"\p{Georgian}",
    "hangul": r"\p{Hangul}",
    "kana": r"[\p{Hiragana}\p{Katakana}ー]",  # the long-vowel mark belongs to both, so Unicode calls it common
    "han": r"\p{Han}",
}
"""The scripts that are distinguished, as Unicode's property `Script` names their characters."""
_LETTERS = regex.compile(
    r"(?V1)"
    + "|".join(f"(?P<{name}>[\\p{{L}}&&{letters}]+)" for name, letters in _SCRIPTS.items())
    + r"|(?P<other>\p{L})"
)


class RequestText(NamedTuple):
    """A request as it is classified.

    Attributes:
        segments: The whole, then its sentences if there are several, then windows of long ones; empty if the request
            has no text.
        script: The script of most of its letters, such as `"latin"`.
        has_code: Whether fenced code was left out.
    """

    segments: tuple[str, ...]
    script: str
    has_code: bool


def last_user_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a prompt that is routed: the text itself, or the text parts of the last user message."""
    if isinstance(prompt, str):
        return prompt
    messages = [message for message in prompt if message.get("role") == "user"] or list(prompt)
    content = messages[-1].get("content") if messages else ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else ()
    texts = (
        part if isinstance(part, str) else part.get("text")
        for part in parts
        if isinstance(part, str | Mapping)
    )
    return "\n".join(text for text in texts if isinstance(text, str))


def segment_request(text: str) -> RequestText:
    """Splits a request into segments; of a very long one, the beginning and the end.

    A request of nothing but fenced code is taken with its code.
    """
    half = MAX_REQUEST_CHARS // 2
    text = text if len(text) <= MAX_REQUEST_CHARS else f"{text[:half]}\n{text[-half:]}"
    prose = _FENCED_CODE.sub(" ", text) if "```" in text else text
    has_code, whole = prose != text, (prose.strip() or text.strip())
    return RequestText(_segments(whole) if whole else (), dominant_script(whole), has_code)


def dominant_script(text: str) -> str:
    """The script of most of a text's letters; `"none"` if it has no letter, `"other"` for scripts without a name."""
    if text.isascii():
        return "latin" if any(map(str.isalpha, text)) else "none"
    counts: Counter[str] = Counter()
    for run in _LETTERS.finditer(text):
        counts[run.lastgroup] += run.end() - run.start()
    return min(counts, key=lambda name: (-counts[name], name)) if counts else "none"


def _segments(text: str) -> tuple[str, ...]:
    sentences = _first_and_last(_sentences(text), MAX_SEGMENTS)
    windows = [window for sentence in sentences for window in _windows(sentence)]
    return tuple(dict.fromkeys([text, *sentences, *_first_and_last(windows, MAX_SEGMENTS - len(sentences))]))


def _sentences(text: str) -> list[str]:
    if not _SENTENCE_MARK.search(text):  # most requests have one sentence
        return [text]
    return [sentence for part in _SENTENCE_END.split(text) if (sentence := part.strip())]


def _windows(sentence: str) -> list[str]:
    words, stride = sentence.split(), WINDOW_WORDS // 2
    if len(words) <= MAX_SENTENCE_WORDS:
        return []
    return [" ".join(words[start : start + WINDOW_WORDS]) for start in range(0, len(words) - stride, stride)]


def _first_and_last(segments: list[str], limit: int) -> list[str]:
    half = limit // 2
    return segments if len(segments) <= limit else [*segments[:half], *segments[len(segments) - half :]]
