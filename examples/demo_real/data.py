"""Writes the training data and the held-out requests of the tasks.

    python -m examples.demo_real.data                                  # `extract` and `calculate`, made by program
    python -m examples.demo_real.data --gsm8k train.jsonl              # also makes data/maths-*.jsonl again
    python -m examples.demo_real.data --clinc150 data_full.json        # also makes data/intents-*.jsonl again

The folder data/ holds the last two already; its README names the sources and their licences.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from examples.demo.tasks import Record
from examples.demo_real import calculate, extraction, intents, maths

SHIPPED = Path(__file__).parent / "data"
MADE = Path("build") / "demo-real"
EXTRACTIONS = 800
"""Training texts of `extract`."""
PROBLEMS = 600
"""Training problems of `calculate` that are made by program."""


def write(path: Path, records: Iterable[Record]) -> None:
    """Writes one conversation a line, as `adapterhub finetune` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"messages": record["messages"]}, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")


def read(name: str) -> list[Record]:
    """The records of a file in data/."""
    lines = (SHIPPED / name).read_text(encoding="utf-8").splitlines()
    return [{"messages": json.loads(line)["messages"], "check": {}} for line in lines]


def made() -> dict[str, list[Record]]:
    """The training records of the tasks whose data is made by program; `calculate` has some of GSM8K's too."""
    real = calculate.of_gsm8k(read("maths-train.jsonl"))
    return {
        "extract": extraction.generate("train", EXTRACTIONS, 1),
        "calculate": [*calculate.generate("train", PROBLEMS, 1), *real],
    }


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=MADE, help="folder of the data that is made by program")
    parser.add_argument("--gsm8k", type=Path, help="GSM8K's train.jsonl")
    parser.add_argument("--clinc150", type=Path, help="CLINC150's data_full.json")
    args = parser.parse_args()
    if args.gsm8k:
        rows = [json.loads(line) for line in args.gsm8k.read_text(encoding="utf-8").splitlines()]
        write(SHIPPED / "maths-train.jsonl", maths.training(rows))
        write(SHIPPED / "maths-heldout.jsonl", maths.heldout(rows))
    if args.clinc150:
        source = json.loads(args.clinc150.read_text(encoding="utf-8"))
        write(SHIPPED / "intents-train.jsonl", intents.training(source))
        write(SHIPPED / "intents-heldout.jsonl", intents.heldout(source))
    for name, records in made().items():
        write(args.out / f"{name}-train.jsonl", records)


if __name__ == "__main__":
    main()
