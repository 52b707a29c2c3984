"""MinHash signatures (Broder, 1997) of word shingles, and the bands that find candidates (Leskovec et al., 2014).

The share of equal values in two signatures estimates the Jaccard similarity of two sets of shingles. A band is a run of
values; texts that are equal in one are candidates. A signature has 512 bytes however long its text is.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from zlib import crc32

import numpy as np
import regex
from numpy.typing import NDArray

Signatures = NDArray[np.uint32]
"""Shape (texts, `PERMUTATIONS`)."""

PERMUTATIONS = 128
SHINGLE_WORDS = 3
_RECALL = 0.98
"""Probability that a pair just at the threshold is a candidate; more similar pairs are found more surely."""
_SHINGLES_AT_ONCE = 8192
# Letters of scripts without spaces stand alone. Signs that change what is said count; sentence punctuation does not.
_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]|[\p{L}\p{M}\p{N}_]+"
    r"|[\p{S}*/%&@#]|-(?=\s?\p{N})"
)
_random = np.random.default_rng(0)
_MIX = _random.integers(1, 2**63, SHINGLE_WORDS, dtype=np.uint64) * 2 + 1
_FACTORS = _random.integers(1, 2**63, (PERMUTATIONS, 1), dtype=np.uint64) * 2 + 1
_OFFSETS = _random.integers(0, 2**63, (PERMUTATIONS, 1), dtype=np.uint64)


def words(text: str) -> list[str]:
    """The words and signs of a text, without case and sentence punctuation; the text itself if it has none."""
    normal = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(normal) or [normal]


def shingles(text: str) -> NDArray[np.uint64]:
    """A hash of every three words in a row; of all words where there are fewer."""
    codes = [crc32(word.encode("utf-8", "surrogatepass")) for word in words(text)]
    padded = np.array(codes + [0] * (SHINGLE_WORDS - len(codes)), dtype=np.uint64)
    count = len(padded) - SHINGLE_WORDS + 1
    hashes = sum(padded[i : i + count] * _MIX[i] for i in range(SHINGLE_WORDS))
    return np.asarray(hashes ^ (hashes >> np.uint64(29)), dtype=np.uint64)


def signatures(texts: Iterable[str]) -> Signatures:
    """The MinHash signatures of texts, by multiply-shift hashing (Dietzfelbinger et al., 1997)."""
    row = np.dtype((np.uint32, PERMUTATIONS))
    return np.fromiter((_signature(shingles(text)) for text in texts), dtype=row)


def _signature(hashes: NDArray[np.uint64]) -> NDArray[np.uint32]:
    parts = (hashes[i : i + _SHINGLES_AT_ONCE] for i in range(0, len(hashes), _SHINGLES_AT_ONCE))
    minima = [((_FACTORS * part + _OFFSETS) >> np.uint64(32)).min(axis=1) for part in parts]
    return np.asarray(np.min(minima, axis=0), dtype=np.uint32)


def band_rows(threshold: float) -> int:
    """Values in a band: as many as find pairs at the threshold with a probability of 98 %.

    A pair of similarity `s` is equal in one of `b` bands of `r` values with the probability `1 - (1 - s^r)^b`.
    """
    return max(
        (
            rows
            for rows in range(1, PERMUTATIONS + 1)
            if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= _RECALL
        ),
        default=1,
    )


def buckets(signed: Signatures, threshold: float) -> NDArray[np.int64]:
    """For each text and band, the number of its bucket: equal in the band, equal in number.

    Returns:
        Shape (texts, bands); -1 where a text is alone.
    """
    rows = band_rows(threshold)
    bands: list[NDArray[np.int64]] = []
    for start in range(0, PERMUTATIONS - rows + 1, rows):
        band = np.ascontiguousarray(signed[:, start : start + rows])
        keys = band.view(np.dtype((np.void, band.itemsize * rows))).ravel()
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        bands.append(np.where(counts[inverse] > 1, inverse + len(bands) * len(signed), -1))
    return np.stack(bands, axis=1)


def estimates(signed: Signatures, row: int, others: Sequence[int]) -> NDArray[np.float64]:
    """The estimated Jaccard similarity of one text to others."""
    return np.asarray((signed[np.asarray(others)] == signed[row]).mean(axis=1))
