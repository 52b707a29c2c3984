"""Texts as sparse vectors of hashed word and character n-grams with IDF weights.

Feature hashing needs no vocabulary, and n-grams without training data still count in a vector's norm: an unfamiliar
request scores lower than it would if they were dropped. `crc32` has no seed and is the same on every machine; crafted
collisions could only misroute the request of whoever crafts them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import numpy as np

from adapterhub.routing.classifier.arrays import FloatArray, IntArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BUCKETS = 2**15
"""Hash buckets of each of the two blocks: word n-grams first, then character n-grams."""
WORD_BLOCK_NORM = 0.7
"""The norm of the word block; that of the character block is 1."""
VECTOR_NORM = (1 + WORD_BLOCK_NORM**2) ** 0.5
"""The norm of a vector with both blocks."""
_SUBLINEAR_TF = (1 + np.log(np.arange(2**8).clip(1))).astype(np.float32)
"""1 + log(tf), by term frequency; the last entry holds for all higher ones."""
_MAX_TEXT_CHARS = 6_000  # NFKC can turn one character into eighteen
_MAX_TOKEN_CHARS = 40
_DIGIT = re.compile(r"\d")
_WORD = re.compile(r"\w+")
_LETTERS = re.compile(r"[^\W\d_]+")
_DIGITS = re.compile(r"\d+")


class SparseVector(NamedTuple):
    """A sparse vector: indices (n), ascending, and values (n, float32)."""

    indices: IntArray
    values: FloatArray


def normalize_text(text: str) -> str:
    """NFKC, lower case, Russian ё as е, every digit as 0."""
    folded = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return _DIGIT.sub("0", folded[:_MAX_TEXT_CHARS].lower().replace("ё", "е"))


def hash_ngrams(text: str) -> IntArray:
    """The buckets of a text's n-grams, ascending, one for each occurrence.

    The n-grams are words, pairs of words, and 2 to 4 characters within whitespace tokens, padded with a space on
    both sides (scikit-learn's `char_wb`).
    """
    text = normalize_text(text)
    pairs = np.array([_bucket(pair) for pair in _word_pairs(text)], np.intp)
    # Long tokens hardly recur, and would fill the cache.
    tokens = [
        _cached_token_buckets(token) if len(token) <= _MAX_TOKEN_CHARS else _token_buckets(token)
        for token in text.split()
    ]
    found = np.concatenate([pairs, *tokens])
    found.sort()
    return found


def ngrams_by_bucket(text: str) -> dict[int, str]:
    """One n-gram of the text for each of its buckets."""
    text = normalize_text(text)
    tokens = text.split()
    words = [*_word_pairs(text), *(ngram for token in tokens for ngram in _word_ngrams(token))]
    chars = [ngram for token in tokens for ngram in _char_ngrams(token)]
    return {_bucket(ngram): ngram for ngram in words} | {BUCKETS + _bucket(ngram): ngram for ngram in chars}


def _token_buckets(token: str) -> IntArray:
    """The buckets of all n-grams of a whitespace token, that is all but pairs of words."""
    words, chars = _word_ngrams(token), _char_ngrams(token)
    return np.array([*map(_bucket, words), *(BUCKETS + _bucket(ngram) for ngram in chars)], np.intp)


_cached_token_buckets = lru_cache(maxsize=2**14)(_token_buckets)
"""Tokens recur across requests; the cached arrays are never written to."""


def _word_pairs(text: str) -> list[str]:
    return [f"{first} {second}" for first, second in pairwise(_WORD.findall(text))]


def _word_ngrams(token: str) -> list[str]:
    """The words of a token, and its shape unless it is a plain word."""
    words = _WORD.findall(token)
    return words if token.isalpha() or (shape := _shape(token)) == "~a" else [*words, shape]


def _shape(token: str) -> str:
    """A token with each run of letters or digits reduced to one: `~a(a)` of `f(x)`, `~0:0` of `12:30`."""
    bare = token.strip(".,;:!?\"'")[:_MAX_TOKEN_CHARS]
    return f"~{_LETTERS.sub('a', _DIGITS.sub('0', bare))}"


def _char_ngrams(token: str) -> list[str]:
    padded = f" {token[:_MAX_TOKEN_CHARS]} "
    return [padded[i : i + n] for n in (2, 3, 4) for i in range(len(padded) - n + 1)]


def _bucket(ngram: str) -> int:
    return crc32(ngram.encode("utf-8", "surrogatepass")) % BUCKETS


class TfidfWeighting:
    """Sublinear term frequency times smooth IDF, each block with a norm of its own.

    Args:
        idf: The weight of every bucket (2 * BUCKETS, float32); a bucket without training data has the highest.
    """

    def __init__(self, idf: FloatArray) -> None:
        self.idf = idf

    @classmethod
    def fit(cls, texts: Iterable[IntArray]) -> TfidfWeighting:
        """IDF weights from the buckets of each text."""
        document_counts, texts_seen = np.zeros(2 * BUCKETS), 0
        for found in texts:
            document_counts[found] += 1  # once for each bucket, however often it occurs
            texts_seen += 1
        return cls((np.log((1 + texts_seen) / (1 + document_counts)) + 1).astype(np.float32))

    def vector(self, found: IntArray) -> SparseVector:
        """The vector of a text, given its n-grams' buckets from `hash_ngrams`."""
        indices, counts = _unique_counts(found)
        values = self.idf.take(indices)
        if len(indices) < len(found):
            values *= _SUBLINEAR_TF.take(counts, mode="clip")
        split = int(indices.searchsorted(BUCKETS))
        for block, target in ((values[:split], WORD_BLOCK_NORM), (values[split:], 1.0)):
            norm = float(block.dot(block)) ** 0.5
            if norm:
                block *= target / norm
        return SparseVector(indices, values)


def _unique_counts(ordered: IntArray) -> tuple[IntArray, IntArray]:
    """As `np.unique(ordered, return_counts=True)` for a sorted array, in less than half of its time."""
    changes = np.empty(len(ordered) + 1, bool)
    changes[0] = changes[-1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=changes[1:-1])
    edges = changes.nonzero()[0]
    return ordered.take(edges[:-1]), edges[1:] - edges[:-1]


def to_csr(vectors: Sequence[SparseVector], columns: IntArray, width: int) -> csr_array:
    """Vectors as a CSR matrix (n, width).

    Args:
        vectors: Vectors by bucket.
        columns: Bucket -> column; -1 drops the bucket (buckets).
        width: The number of columns.
    """
    from scipy.sparse import csr_array

    if not vectors:
        return csr_array((0, width), dtype=np.float32)
    indices = [columns[vector.indices] for vector in vectors]
    masks = [own >= 0 for own in indices]
    indptr = np.cumsum([0, *(int(mask.sum()) for mask in masks)]).astype(np.int32)
    joined = np.concatenate([own[mask] for own, mask in zip(indices, masks, strict=True)])
    values = np.concatenate([vector.values[mask] for vector, mask in zip(vectors, masks, strict=True)])
    matrix = csr_array((values, joined.astype(np.int32), indptr), shape=(len(vectors), width))
    matrix.sort_indices()  # once here, not in each fit
    return matrix
