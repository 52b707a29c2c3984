"""Exact and near-duplicate removal: time, memory, and how many of the planted duplicates are found.

    OMP_NUM_THREADS=1 python -m benchmarks.deduplication --rows 100000

Texts are made: 40 to 160 words from 30,000, of the frequencies of a natural language; a tenth of the rows are copies of
an earlier row, a tenth are copies with one word of the answer changed. Memory is the peak above that of the rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapterhub.dataset.near_duplicates import DeduplicationOptions, deduplicate
from adapterhub.dataset.records import Message, Record, Sample

_VOCABULARY = 30_000


@dataclass(frozen=True)
class Planted:
    """Rows with duplicates among them, and how many are copies and edited copies."""

    samples: list[Sample]
    exact: int
    near: int


def planted(rows: int, *, seed: int, share: float = 0.1) -> Planted:
    """Rows under one system prompt, of which one share are copies, and another copies with one word changed.

    Edited copies are made of rows that are no copies themselves, so that each has a near duplicate before it.
    """
    generator = np.random.default_rng(seed)
    letters = generator.integers(97, 123, (_VOCABULARY, 9), dtype=np.uint8)
    vocabulary = np.array([bytes(word[: 3 + i % 7]).decode() for i, word in enumerate(letters)])
    frequencies = 1 / np.arange(1, _VOCABULARY + 1)
    frequencies /= frequencies.sum()
    originals: list[tuple[str, str]] = []
    rows_of_text: list[tuple[str, str]] = []
    exact = near = 0
    for kind in generator.random(rows):
        if originals and kind < 2 * share:
            question, answer = originals[generator.integers(len(originals))]
            if kind < share:
                exact += 1
            else:
                words = answer.split()
                words[generator.integers(len(words))] = f"edited{near}"
                answer, near = " ".join(words), near + 1
        else:
            words = vocabulary[
                generator.choice(_VOCABULARY, generator.integers(40, 161), p=frequencies)
            ].tolist()
            question, answer = " ".join(words[: len(words) // 3]), " ".join(words[len(words) // 3 :])
            originals.append((question, answer))
        rows_of_text.append((question, answer))
    return Planted([_sample(*row, line) for line, row in enumerate(rows_of_text, start=1)], exact, near)


def _sample(question: str, answer: str, line: int) -> Sample:
    messages = [
        Message(role="system", content="You are a helpful assistant. " * 10),
        Message(role="user", content=question),
        Message(role="assistant", content=answer),
    ]
    return Sample(Record(messages=messages, line=line), "made")


def measure(rows: int, threshold: float) -> dict[str, float]:
    """Removes the duplicates of made rows."""
    from benchmarks.common import PeakMemory

    truth = planted(rows, seed=0)
    with PeakMemory() as memory:
        started, cpu = time.perf_counter(), time.process_time()
        found = deduplicate(truth.samples, DeduplicationOptions(threshold=threshold))
        took, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "rows": rows,
        "kept": len(found.kept),
        "exact_planted": truth.exact,
        "exact_found": found.dropped["exact duplicate"],
        "near_planted": truth.near,
        "near_found": found.dropped["near duplicate"],
        "seconds": took,
        "cpu_seconds": cpu,
        "memory_mib": memory.peak_mib - memory.before_mib,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the figures."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--threshold", type=float, default=0.8)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args(arguments)
    found = measure(chosen.rows, chosen.threshold)
    if chosen.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:14} {value:12,.1f}" if isinstance(value, float) else f"{name:14} {value:12,}")


if __name__ == "__main__":
    main()
