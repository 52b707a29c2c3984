"""What of a request the router reads: the last thing the user said, in pieces, without code, and its script.

Among two dozen words that ask for nothing, a request is lost on a bag of words. So it is also read by sentences; and
where people leave out full stops, by spans of words.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LONGEST = 4_000
"""Characters of a request that are read: its beginning and its end."""
MOST_PIECES = 24
"""Sentences and spans of one request that are read beside the whole."""
LONG_SENTENCE = 20
"""Words that a sentence may have before its spans are read too."""
SPAN = 10
"""Words of a span; each begins in the middle of the one before."""
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_MARK = re.compile(r"[.!?…。！？\n]")
_END_OF_SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n+")
# Where the Unicode blocks of the commonest scripts begin, and what begins there.
_BLOCKS = (
    (0x0000, "latin"),
    (0x0370, "greek"),
    (0x0400, "cyrillic"),
    (0x0530, "armenian"),
    (0x0590, "hebrew"),
    (0x0600, "arabic"),
    (0x0780, "other"),
    (0x0900, "devanagari"),
    (0x0980, "other"),
    (0x0E00, "thai"),
    (0x0E80, "other"),
    (0x10A0, "georgian"),
    (0x1100, "hangul"),
    (0x1200, "other"),
    (0x1E00, "latin"),
    (0x1F00, "greek"),
    (0x2000, "other"),
    (0x3040, "kana"),
    (0x3100, "han"),
    (0xAC00, "hangul"),
    (0xD7B0, "other"),
    (0xFF21, "latin"),
    (0xFF66, "kana"),
    (0xFFA0, "other"),
    (0x20000, "han"),
    (0x323B0, "other"),
)
_STARTS = [start for start, _ in _BLOCKS]


class Reading(NamedTuple):
    """A request as the router reads it.

    Attributes:
        pieces: The whole, then its sentences where there are several, then spans of long ones; empty if there is
            nothing to read.
        script: The writing system of most of its letters, such as `"latin"`.
        has_code: Whether fenced code was left out.
    """

    pieces: tuple[str, ...]
    script: str
    has_code: bool


def request_in(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """What a prompt asks: the text itself, or the last message of the user, without parts that are no text."""
    if isinstance(prompt, str):
        return prompt
    said = [message for message in prompt if message.get("role") == "user"] or list(prompt)
    content = said[-1].get("content") if said else ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else ()
    texts = (
        part if isinstance(part, str) else part.get("text")
        for part in parts
        if isinstance(part, str | Mapping)
    )
    return "\n".join(text for text in texts if isinstance(text, str))


def read(text: str) -> Reading:
    """Reads a request; of a very long one the beginning and the end count.

    A request that is nothing but fenced code is read as it stands.
    """
    half = LONGEST // 2
    text = text if len(text) <= LONGEST else f"{text[:half]}\n{text[-half:]}"
    prose = _FENCE.sub(" ", text) if "```" in text else text
    has_code, whole = prose != text, (prose.strip() or text.strip())
    return Reading(_pieces(whole) if whole else (), script(whole), has_code)


def _pieces(text: str) -> tuple[str, ...]:
    sentences = _ends(_sentences(text), MOST_PIECES)
    spans = _ends([span for sentence in sentences for span in _spans(sentence)], MOST_PIECES - len(sentences))
    return tuple(dict.fromkeys([text, *sentences, *spans]))


def _sentences(text: str) -> list[str]:
    if not _MARK.search(text):  # as in most requests; to look for a mark takes less time than to split
        return [text]
    return [piece for part in _END_OF_SENTENCE.split(text) if (piece := part.strip())]


def _spans(sentence: str) -> list[str]:
    words = sentence.split()
    if len(words) <= LONG_SENTENCE:
        return []
    return [" ".join(words[start : start + SPAN]) for start in range(0, len(words) - SPAN // 2, SPAN // 2)]


def _ends(pieces: list[str], most: int) -> list[str]:
    """The first and the last pieces."""
    half = most // 2
    return pieces if len(pieces) <= most else [*pieces[:half], *pieces[len(pieces) - half :]]


def script(text: str) -> str:
    """The writing system of most of a text's letters, by Unicode block; `"none"` if it has no letter."""
    if text.isascii():
        return "latin" if any(map(str.isalpha, text)) else "none"
    found = Counter(_BLOCKS[bisect_right(_STARTS, ord(sign)) - 1][1] for sign in text if sign.isalpha())
    return min(found, key=lambda name: (-found[name], name)) if found else "none"
