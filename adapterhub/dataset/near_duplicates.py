"""Exact and near duplicates: removed from the data, or found so that a split can keep them together.

What is compared is what users and the assistant say: system prompts, tools and the chat template, which records share,
never make two of them similar, and prompts that a source uses in turn never make two of them different. MinHash
proposes candidates; each is verified on the texts themselves.
"""

from __future__ import annotations

import json
import unicodedata
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TypeVar

from pydantic import Field

from adapterhub.dataset import minhash
from adapterhub.dataset.records import Record, Sample
from adapterhub.dataset.stages import Progress, StageOptions, StageResult, shown

_Item = TypeVar("_Item")

DEFAULT_THRESHOLD = 0.8
_MARGIN = 0.1
"""About three standard errors of an estimate from 128 permutations: what is further below is not verified."""
_VERIFIED = 16
"""Candidates of a text that are verified, the most similar by estimate."""
_IN_BUCKET = 32
"""The newest texts of a bucket that are candidates, so that texts made from one pattern do not take quadratic time."""
_ANSWER_WORDS = 0.5
"""Share of the answers' words that near duplicates have in common."""


class DeduplicationOptions(StageOptions):
    """Which duplicates are removed; the first of them in the order of the sources stays."""

    exact: bool = True
    """Remove conversations whose user and assistant messages are the same but for white space."""
    near: bool = True
    """Remove near duplicates too, by MinHash."""
    threshold: float = Field(DEFAULT_THRESHOLD, gt=0, le=1)
    """Jaccard similarity of three-word shingles from which on two conversations are near duplicates, if their answers
    also share half of their words: many questions on one long passage are none."""


def deduplicate(samples: Iterable[Sample], options: DeduplicationOptions) -> StageResult:
    """Removes exact and near duplicates; the first of each stays.

    Args:
        samples: The samples.
        options: What counts as a duplicate.
    """
    result = StageResult()
    unique = _without_copies(samples, result) if options.exact else iter(samples)
    if not options.near:
        result.kept = list(unique)
        return result
    candidates: list[Sample] = []
    index = _Index((sample.compared for sample in _collected(unique, candidates)), options.threshold)
    for row, sample in enumerate(candidates):
        if any(True for _ in index.matches(row)):
            result.dropped["near duplicate"] += 1
        else:
            index.add(row)
            result.kept.append(sample)
    return result


def duplicate_groups(
    records: Sequence[Record], threshold: float = DEFAULT_THRESHOLD, progress: Progress | None = None
) -> list[int]:
    """Numbers of groups: records that are exact or near duplicates of each other, over others too, share one.

    Args:
        records: The records.
        threshold: As in `DeduplicationOptions`.
        progress: Called now and then, twice for each record.
    """
    index = _Index(shown(records, "reading for near duplicates", progress), threshold)
    parents = list(range(len(records)))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for row in shown(range(len(records)), "comparing near duplicates", progress):
        for match in index.matches(row):
            parents[root(row)] = root(match)
        index.add(row)
    return [root(row) for row in range(len(records))]


def _without_copies(samples: Iterable[Sample], result: StageResult) -> Iterator[Sample]:
    seen: set[bytes] = set()
    for sample in samples:
        key = _exact_key(sample.compared)
        if key in seen:
            result.dropped["exact duplicate"] += 1
        else:
            seen.add(key)
            yield sample


def _collected(items: Iterable[_Item], into: list[_Item]) -> Iterator[_Item]:
    """The items one by one, each put into the list: they are signed while they are read, so that progress is true."""
    for item in items:
        into.append(item)
        yield item


def _exact_key(record: Record) -> bytes:
    said = [
        (message.role, " ".join(unicodedata.normalize("NFC", message.said).split()))
        for message in record.messages
        if message.role in ("user", "assistant")
    ]
    return blake2b(json.dumps(said).encode(), digest_size=16).digest()


class _Index:
    """Finds verified near duplicates among the records that were added to it."""

    def __init__(self, records: Iterable[Record], threshold: float) -> None:
        self._records: list[Record] = []
        self._threshold = threshold
        self._signatures = minhash.signatures(
            record.conversation for record in _collected(records, self._records)
        )
        self._buckets = minhash.buckets(self._signatures, threshold)
        self._shared = (self._buckets >= 0).sum(axis=1).tolist()
        self._members: dict[int, deque[int]] = defaultdict(lambda: deque(maxlen=_IN_BUCKET))
        self._shingles = lru_cache(maxsize=4096)(self._shingles_of)
        self._answer_words = lru_cache(maxsize=4096)(self._answer_words_of)

    def add(self, row: int) -> None:
        if self._shared[row]:
            for bucket in self._buckets_of(row):
                self._members[bucket].append(row)

    def matches(self, row: int) -> Iterator[int]:
        """The near duplicates of a record among those that were added, the most similar first."""
        if not self._shared[row]:
            return
        candidates = sorted({other for bucket in self._buckets_of(row) for other in self._members[bucket]})
        if not candidates:
            return
        similarity = minhash.estimates(self._signatures, row, candidates)
        for i in (-similarity).argsort(kind="stable")[:_VERIFIED]:
            if similarity[i] >= self._threshold - _MARGIN and self._is_duplicate(row, candidates[i]):
                yield candidates[i]

    def _buckets_of(self, row: int) -> list[int]:
        numbers: list[int] = self._buckets[row].tolist()
        return [number for number in numbers if number >= 0]

    def _is_duplicate(self, one: int, other: int) -> bool:
        # The answers first: they are shorter.
        if jaccard(self._answer_words(one), self._answer_words(other)) < _ANSWER_WORDS:
            return False
        return jaccard(self._shingles(one), self._shingles(other)) >= self._threshold

    def _shingles_of(self, row: int) -> frozenset[int]:
        return frozenset(minhash.shingles(self._records[row].conversation).tolist())

    def _answer_words_of(self, row: int) -> frozenset[str]:
        return frozenset(minhash.words(self._records[row].answers))


def jaccard(one: frozenset[Hashable], other: frozenset[Hashable]) -> float:
    """The share of two sets' elements that are in both."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)
