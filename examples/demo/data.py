"""Writes the four tasks' training data and held-out requests as JSON Lines.

python -m examples.demo.data --out build/demo --train 40000 --heldout 200
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType

from examples.demo.tasks import code_task, json_task, support_task, tools_task
from examples.demo.words import Split

TASKS: dict[str, ModuleType] = {
    "json": json_task,
    "code": code_task,
    "support": support_task,
    "tools": tools_task,
}


def write(task: str, split: Split, n: int, seed: int, out: Path) -> Path:
    """Writes `<out>/<task>-<split>.jsonl` and returns its path."""
    path = out / f"{task}-{split}.jsonl"
    records = TASKS[task].generate(split, n, seed)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def main() -> None:
    """Writes all tasks' files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--train", type=int, default=40_000, help="training records of each task")
    parser.add_argument("--heldout", type=int, default=200, help="held-out requests of each task")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        for split, count in (("train", args.train), ("heldout", args.heldout)):
            print(write(task, split, count, args.seed, args.out))


if __name__ == "__main__":
    main()
