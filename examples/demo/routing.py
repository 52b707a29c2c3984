"""Puts example requests of the training side on the adapters' cards, for the router to learn from.

python -m examples.demo.routing --registry adapters --n 100
"""

from __future__ import annotations

import argparse
from pathlib import Path

from adapterhub import AdapterRegistry
from examples.demo.data import TASKS

SEED = 77
"""Of the requests; not the training data's own."""


def requests(task: str, n: int, seed: int = SEED) -> tuple[str, ...]:
    """`n` different requests of a task, phrased and filled as in training."""
    asked = (record["messages"][0]["content"] for record in TASKS[task].generate("train", 2 * n, seed))
    return tuple(dict.fromkeys(asked))[:n]


def main() -> None:
    """Writes the cards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--registry", type=Path, default=Path("adapters"))
    parser.add_argument("--n", type=int, default=100, help="requests of each adapter")
    args = parser.parse_args()
    for task in TASKS:
        AdapterRegistry(args.registry).update(task, routing={"examples": requests(task, args.n)})


if __name__ == "__main__":
    main()
