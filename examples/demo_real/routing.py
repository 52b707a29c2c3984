"""Puts example requests of the training data on the adapters' cards, for the router to learn from.

python -m examples.demo_real.routing --registry examples/demo_real/adapters
"""

from __future__ import annotations

import argparse
from pathlib import Path

from adapterhub import AdapterRegistry
from examples.demo_real import calculate, extraction
from examples.demo_real.data import read

EXAMPLES = 60
"""Requests of each adapter."""
SEED = 77
"""Of the requests that are made by program; not the training data's own."""


def main() -> None:
    """Writes the cards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--registry", type=Path, default=Path("examples/demo_real/adapters"))
    registry = AdapterRegistry(parser.parse_args().registry)
    records = {
        "calculate": calculate.generate("train", EXAMPLES, SEED),
        "extract": extraction.generate("train", EXAMPLES, SEED),
        "intents": read("intents-train.jsonl"),
    }
    for name, asked in records.items():
        examples = tuple(record["messages"][0]["content"] for record in asked[:EXAMPLES])
        registry.update(name, routing={"examples": examples})


if __name__ == "__main__":
    main()
