"""Tokenizes bytes with the fewest tokens of a vocabulary.

A text can be written with many token sequences. The completion search needs the shortest one, since the token budget
counts tokens; a BPE tokenizer's own merges do not always give it.
"""

from __future__ import annotations

from dataclasses import dataclass

from llguidance import LLTokenizer

MAX_TOKEN_BYTES = 32  # longer tokens are runs of blanks and other rarities
UNREACHABLE = 1 << 30
"""The token count of bytes that the vocabulary cannot write."""
CLOSING_CHARACTERS = (b'"', b"}", b"]", b")")
_SPECIAL_TOKEN_PREFIX = 0xFF  # llguidance writes a special token as `\xff[id]`
_PREFERRED_FIRST = b"".join(CLOSING_CHARACTERS) + b"0"


@dataclass(frozen=True)
class TokenizedBytes:
    """Bytes with their shortest tokenization, stored for every suffix so that a prefix can be added cheaply.

    Attributes:
        text: The bytes; a special token is written as llguidance does, `\\xff[id]`.
        token_counts: At index k the number of tokens of the last k bytes.
        first_token_sizes: At index k the number of bytes of the first of those tokens.
    """

    text: bytes = b""
    token_counts: tuple[int, ...] = (0,)
    first_token_sizes: tuple[int, ...] = (0,)

    @property
    def cost(self) -> tuple[int, int]:
        """Number of tokens, then of bytes."""
        return self.token_counts[-1], len(self.text)

    @property
    def is_reachable(self) -> bool:
        """Whether the vocabulary can write the bytes."""
        return self.token_counts[-1] < UNREACHABLE


class MinimalTokenizer:
    """Tokenizes bytes with the fewest tokens of a vocabulary.

    Args:
        tokenizer: llguidance's.
        vocab_size: Number of tokens that the model can generate, the width of its logits.

    Attributes:
        alphabet: The single bytes and special tokens that every text can be written with, as (bytes, token id), in
            the order in which a search for a short completion should try them.
        spells_everything: Whether the alphabet can write all that the vocabulary can.
    """

    def __init__(self, tokenizer: LLTokenizer, vocab_size: int) -> None:
        self._ids: dict[bytes, int] = {}
        for token_id in range(min(vocab_size, tokenizer.vocab_size)):
            special = tokenizer.is_special_token(token_id)
            text = b"\xff[%d]" % token_id if special else tokenizer.decode_bytes([token_id])
            if text and len(text) <= MAX_TOKEN_BYTES:
                self._ids.setdefault(text, token_id)
        self.alphabet = sorted(self._shortest_tokens(), key=_search_order)
        self.spells_everything = all(_first_symbol(text) == text for text, _ in self.alphabet)

    def tokenize(self, text: bytes, suffix: TokenizedBytes | None = None) -> TokenizedBytes:
        """Tokenizes bytes, by dynamic programming from their end.

        Args:
            text: The bytes.
            suffix: Bytes that follow them and are tokenized already; the result covers both.
        """
        suffix = suffix or TokenizedBytes()
        whole = text + suffix.text
        counts, sizes = list(suffix.token_counts), list(suffix.first_token_sizes)
        for start in range(len(text) - 1, -1, -1):
            fewest, first = UNREACHABLE, 1
            for size in range(1, min(MAX_TOKEN_BYTES, len(whole) - start) + 1):
                if counts[-size] < fewest and whole[start : start + size] in self._ids:
                    fewest, first = counts[-size], size
            counts.append(fewest + 1)
            sizes.append(first)
        return TokenizedBytes(whole, tuple(counts), tuple(sizes))

    def token_ids(self, tokenized: TokenizedBytes) -> list[int] | None:
        """The token ids; None if the vocabulary cannot write the bytes."""
        if not tokenized.is_reachable:
            return None
        ids, remaining = [], len(tokenized.text)
        while remaining:
            start, size = len(tokenized.text) - remaining, tokenized.first_token_sizes[remaining]
            ids.append(self._ids[tokenized.text[start : start + size]])
            remaining -= size
        return ids

    def _shortest_tokens(self) -> list[tuple[bytes, int]]:
        """For each byte that tokens start with, the shortest such tokens: nearly always that byte alone."""
        shortest: dict[bytes, int] = {}
        for text in self._ids:
            key = _first_symbol(text)
            shortest[key] = min(len(text), shortest.get(key, MAX_TOKEN_BYTES))
        return [
            (text, token_id)
            for text, token_id in self._ids.items()
            if len(text) == shortest[_first_symbol(text)]
        ]


def _first_symbol(text: bytes) -> bytes:
    return text if text[0] == _SPECIAL_TOKEN_PREFIX else text[:1]


def _search_order(symbol: tuple[bytes, int]) -> tuple[int, bytes]:
    """Closing characters first, then letters and digits, other characters, and last what starts a longer sequence."""
    text, _ = symbol
    preference = _PREFERRED_FIRST.find(text)
    if preference >= 0:
        return preference, text
    if text.isalnum():
        return len(_PREFERRED_FIRST), text
    return len(_PREFERRED_FIRST) + (2 if starts_sequence(text) else 1), text


def starts_sequence(text: bytes) -> bool:
    """Whether further bytes must follow for a whole character, as after an escape or in UTF-8."""
    return text == b"\\" or text[0] >= 0x80
