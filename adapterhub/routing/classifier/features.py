"""Texts as sparse vectors of hashed word and letter n-grams.

Hashing needs no vocabulary, and keeps n-grams that no example holds in a text's norm: a foreign request looks less sure
than it would if they were dropped. `crc32` is the same everywhere and has no seed; it is no defence against chosen
collisions, which could only ever misroute the request of who chose them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from zlib import crc32

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
IntArray: TypeAlias = npt.NDArray[np.integer[Any]]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

BUCKETS = 2**15
"""Buckets of each of the two blocks: words first, then letters."""
WORD_WEIGHT = 0.7
"""The length of the word block beside 1 for the letter block."""
LENGTH = (1 + WORD_WEIGHT**2) ** 0.5
"""The length of a vector with both blocks."""
_SUBLINEAR = (1 + np.log(np.arange(2**8).clip(1))).astype(np.float32)
"""What an n-gram counts by how often it occurs; the last holds for all that occur more often."""
_LONGEST_TEXT = 6_000  # some signs become eighteen when they are folded
_LONGEST_PART = 40
_DIGIT = re.compile(r"\d")
_WORD = re.compile(r"\w+")
_LETTERS = re.compile(r"[^\W\d_]+")
_DIGITS = re.compile(r"\d+")


class Vector(NamedTuple):
    """A sparse vector: buckets (n), ascending, and so those of words first; and their values (n, float32)."""

    buckets: IntArray
    values: FloatArray


def normalised(text: str) -> str:
    """A text with one spelling of each letter: compatibility forms folded, lower case, Russian ё as е, digits as 0."""
    folded = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return _DIGIT.sub("0", folded[:_LONGEST_TEXT].lower().replace("ё", "е"))


def buckets(text: str) -> IntArray:
    """The buckets of a text's n-grams, ascending, one for each occurrence: words alone and in pairs, letters in twos
    to fours.

    Letters are taken within the parts between spaces, with a space before and after each.
    """
    text = normalised(text)
    pairs = np.array([_bucket(pair) for pair in _pairs(text)], np.intp)
    # A long part hardly comes again, and would take room.
    parts = [_known(part) if len(part) <= _LONGEST_PART else _of_part(part) for part in text.split()]
    found = np.concatenate([pairs, *parts])
    found.sort()
    return found


def grams(text: str) -> dict[int, str]:
    """An n-gram behind each bucket of a text."""
    text = normalised(text)
    parts = text.split()
    words = [*_pairs(text), *(gram for part in parts for gram in _word_grams(part))]
    letters = [gram for part in parts for gram in _letter_grams(part)]
    return {_bucket(gram): gram for gram in words} | {BUCKETS + _bucket(gram): gram for gram in letters}


def _of_part(part: str) -> IntArray:
    """The buckets of what lies between two spaces of a text: all of its n-grams but pairs of words."""
    words, letters = _word_grams(part), _letter_grams(part)
    return np.array([*map(_bucket, words), *(BUCKETS + _bucket(gram) for gram in letters)], np.intp)


_known = lru_cache(maxsize=2**14)(_of_part)
"""The same parts come again and again; their buckets are only ever read."""


def _pairs(text: str) -> list[str]:
    return [f"{first} {second}" for first, second in pairwise(_WORD.findall(text))]


def _word_grams(part: str) -> list[str]:
    """The words of a part, and its shape where it is more than one word."""
    words = _WORD.findall(part)
    return words if part.isalpha() or (shape := _shape(part)) == "~a" else [*words, shape]


def _shape(part: str) -> str:
    """What is left of a part when each run of letters or digits becomes one: `f(x)`, `name_12` and `12:30` have one."""
    bare = part.strip(".,;:!?\"'")[:_LONGEST_PART]
    return f"~{_LETTERS.sub('a', _DIGITS.sub('0', bare))}"


def _letter_grams(part: str) -> list[str]:
    padded = f" {part[:_LONGEST_PART]} "
    return [padded[i : i + n] for n in (2, 3, 4) for i in range(len(padded) - n + 1)]


def _bucket(gram: str) -> int:
    return crc32(gram.encode("utf-8", "surrogatepass")) % BUCKETS


class Weighting:
    """Sublinear counts times smooth inverse document frequency, each block with a length of its own.

    Args:
        idf: The weight of every bucket (2 * BUCKETS, float32); one that was never seen has the highest.
    """

    def __init__(self, idf: FloatArray) -> None:
        self.idf = idf

    @classmethod
    def fit(cls, texts: Iterable[IntArray]) -> Weighting:
        """Weights from the buckets of each text."""
        seen, count = np.zeros(2 * BUCKETS), 0
        for found in texts:
            seen[found] += 1  # once for each bucket, however often it occurs
            count += 1
        return cls((np.log((1 + count) / (1 + seen)) + 1).astype(np.float32))

    def vector(self, found: IntArray) -> Vector:
        """The vector of a text, given what `buckets` found in it."""
        places, counts = _counted(found)
        values = self.idf.take(places)
        if len(places) < len(found):
            values *= _SUBLINEAR.take(counts, mode="clip")
        split = int(places.searchsorted(BUCKETS))
        for block, length in ((values[:split], WORD_WEIGHT), (values[split:], 1.0)):
            norm = float(block.dot(block)) ** 0.5
            if norm:
                block *= length / norm
        return Vector(places, values)


def _counted(ordered: IntArray) -> tuple[IntArray, IntArray]:
    """The different numbers, ascending, and how often each occurs: `np.unique` in less than half of its time."""
    changes = np.empty(len(ordered) + 1, bool)
    changes[0] = changes[-1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=changes[1:-1])
    edges = changes.nonzero()[0]
    return ordered.take(edges[:-1]), edges[1:] - edges[:-1]


def matrix(vectors: Sequence[Vector], columns: IntArray, width: int) -> csr_array:
    """Vectors as the rows of a matrix (n, width), each bucket in the column that `columns` names; -1 leaves it out."""
    from scipy.sparse import csr_array

    if not vectors:
        return csr_array((0, width), dtype=np.float32)
    places = [columns[vector.buckets] for vector in vectors]
    kept = [place >= 0 for place in places]
    starts = np.cumsum([0, *(int(mask.sum()) for mask in kept)]).astype(np.int32)
    indices = np.concatenate([place[mask] for place, mask in zip(places, kept, strict=True)])
    values = np.concatenate([vector.values[mask] for vector, mask in zip(vectors, kept, strict=True)])
    rows = csr_array((values, indices.astype(np.int32), starts), shape=(len(vectors), width))
    rows.sort_indices()  # once, and not in each fit
    return rows
