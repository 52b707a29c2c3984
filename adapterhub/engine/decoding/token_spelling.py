"""Bytes written with the fewest tokens of a vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from llguidance import LLTokenizer

LONGEST_TOKEN = 32  # bytes; longer tokens are runs of blanks and other rarities
MANY = 1 << 30
CLOSERS = (b'"', b"}", b"]", b")")
_FIRST = b"".join(CLOSERS) + b"0"


@dataclass(frozen=True)
class Ending:
    """Bytes that complete an answer, spelled with the fewest tokens.

    Attributes:
        text: The bytes; a special token is written as llguidance does, `\\xff[id]`.
        counts: At place k the number of tokens that spell the last k bytes.
        sizes: At place k the bytes of the first of those tokens.
    """

    text: bytes = b""
    counts: tuple[int, ...] = (0,)
    sizes: tuple[int, ...] = (0,)

    @property
    def cost(self) -> tuple[int, int]:
        """Number of tokens, then of bytes."""
        return self.counts[-1], len(self.text)


class TokenSpelling:
    """Writes bytes with the fewest tokens of a vocabulary.

    Args:
        tokenizer: llguidance's.
        size: The number of tokens that the model can give.

    Attributes:
        steps: The bytes, and the special tokens, that a text can be written with one by one, and their tokens; those
            that close something come first.
    """

    def __init__(self, tokenizer: LLTokenizer, size: int) -> None:
        self._ids: dict[bytes, int] = {}
        for number in range(min(size, tokenizer.vocab_size)):
            special = tokenizer.is_special_token(number)
            text = b"\xff[%d]" % number if special else tokenizer.decode_bytes([number])
            if text and len(text) <= LONGEST_TOKEN:
                self._ids.setdefault(text, number)
        self.steps = sorted(self._shortest(), key=_eagerness)

    def before(self, text: bytes, ending: Ending) -> Ending:
        """The ending with some bytes put before it."""
        whole, counts, sizes = text + ending.text, list(ending.counts), list(ending.sizes)
        for start in range(len(text) - 1, -1, -1):
            count, first = MANY, 1
            for size in range(1, min(LONGEST_TOKEN, len(whole) - start) + 1):
                if counts[-size] < count and whole[start : start + size] in self._ids:
                    count, first = counts[-size], size
            counts.append(count + 1)
            sizes.append(first)
        return Ending(whole, tuple(counts), tuple(sizes))

    def tokens(self, ending: Ending) -> list[int] | None:
        """The ending in tokens; None if the vocabulary cannot spell it."""
        if ending.counts[-1] >= MANY:
            return None
        tokens, left = [], len(ending.text)
        while left:
            start = len(ending.text) - left
            tokens.append(self._ids[ending.text[start : start + ending.sizes[left]]])
            left -= ending.sizes[left]
        return tokens

    def _shortest(self) -> list[tuple[bytes, int]]:
        """For each byte that tokens begin with, the shortest such tokens: nearly always that byte alone."""
        shortest: dict[bytes, int] = {}
        for text in self._ids:
            key = text if text[0] == 0xFF else text[:1]
            shortest[key] = min(len(text), shortest.get(key, LONGEST_TOKEN))
        return [
            (text, number)
            for text, number in self._ids.items()
            if len(text) == shortest[text if text[0] == 0xFF else text[:1]]
        ]


def _eagerness(step: tuple[bytes, int]) -> tuple[int, bytes]:
    """Closers first, then letters and digits, other characters, and last what begins a longer sequence."""
    text, _ = step
    place = _FIRST.find(text)
    if place >= 0:
        return place, text
    if text.isalnum():
        return len(_FIRST), text
    return len(_FIRST) + (2 if begins_sequence(text) else 1), text


def begins_sequence(text: bytes) -> bool:
    """Whether a character takes further bytes, as an escape or in UTF-8."""
    return text == b"\\" or text[0] >= 0x80
