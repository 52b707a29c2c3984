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
    parts = [
        _known(part) if len(part) <= _LONGEST_PART else _Part.of(part) for part in normalised(text).split()
    ]
    words = [word for part in parts for word in part.words]
    # A checksum can be taken up where another one ends: at the first word's.
    pairs = [crc32(b" " + second, checksum) % BUCKETS for (_, checksum), (second, _) in pairwise(words)]
    found = np.concatenate([np.array(pairs, np.intp), *[part.buckets for part in parts]])
    found.sort()
    return found


def grams(text: str) -> dict[int, str]:
    """An n-gram behind each bucket of a text."""
    text = normalised(text)
    parts, words = text.split(), _WORD.findall(text)
    spoken = words + [f"{first} {second}" for first, second in pairwise(words)]
    named = {_bucket(gram): gram for gram in (*spoken, *(shape for part in parts for shape in _shapes(part)))}
    return named | {BUCKETS + _bucket(gram): gram for part in parts for gram in _letter_grams(part)}


class _Part(NamedTuple):
    """What lies between two spaces of a text.

    Attributes:
        buckets: The buckets of all its n-grams but pairs of words (n).
        words: Each word and its checksum.
    """

    buckets: IntArray
    words: tuple[tuple[bytes, int], ...]

    @classmethod
    def of(cls, part: str) -> _Part:
        words = _WORD.findall(part)
        found = [_bucket(gram) for gram in (*words, *_shapes(part))]
        found += [BUCKETS + _bucket(gram) for gram in _letter_grams(part)]
        return cls(np.array(found, np.intp), tuple((_encoded(word), crc32(_encoded(word))) for word in words))


_known = lru_cache(maxsize=2**14)(_Part.of)
"""The same parts come again and again; their arrays are only ever read."""


def _shapes(part: str) -> list[str]:
    """What is left of a part when each run of letters or digits becomes one: `f(x)`, `name_12` and `12:30` have one."""
    if part.isalpha():
        return []
    shape = _LETTERS.sub("a", _DIGITS.sub("0", part.strip(".,;:!?\"'")[:_LONGEST_PART]))
    return [f"~{shape}"] if shape != "a" else []


def _letter_grams(part: str) -> list[str]:
    padded = f" {part[:_LONGEST_PART]} "
    return [padded[i : i + n] for n in (2, 3, 4) for i in range(len(padded) - n + 1)]


def _bucket(gram: str) -> int:
    return crc32(_encoded(gram)) % BUCKETS


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


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
