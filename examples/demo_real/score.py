"""Scores the bare base and the registry's adapters on held-out requests, each adapter on its own task.

    python -m examples.demo_real.score --n 200 --json scores.json --write-cards
    python -m examples.demo_real.score maths --registry my-adapters
    python -m examples.demo_real.score maths --adapter calculate

Answers come from `adapterhub.AdapterHub`, greedily, on the 4-bit base. The bare base gets the adapter's system
prompt, or one that suits it better where the task has one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from adapterhub import AdapterHub
from adapterhub.demo import demo_registry_folder
from examples.demo.tasks import Record
from examples.demo_real.tasks import SEED, TASKS, Task

BATCH = 50
Scores = dict[str, dict[str, float]]
"""Task -> "adapter" and "base" -> share of right answers."""


def share_right(
    hub: AdapterHub, task: Task, records: Sequence[Record], adapter: str | None, system: str
) -> float:
    """The share of right answers to the records' requests."""
    prompts = [[{"role": "system", "content": system}, *record["messages"][:-1]] for record in records]
    right = 0
    for start in track(
        range(0, len(prompts), BATCH), f"{adapter or 'base'}: {system[:40]}", console=Console(stderr=True)
    ):
        part = slice(start, start + BATCH)
        answers = hub.generate_batch(prompts[part], adapter, temperature=0, max_tokens=task.max_tokens)
        judged = zip(records[part], answers, strict=True)
        right += sum(task.score(record, answer.text) for record, answer in judged)
    return right / len(records)


def score(hub: AdapterHub, names: Sequence[str], n: int, other: str | None = None) -> Scores:
    """The shares of the base and of the task's adapter, or another one's, on `n` held-out requests of every task."""
    scores: Scores = {}
    for name in names:
        task, adapter = TASKS[other or name], other or name
        records = TASKS[name].heldout(n)
        scores[name] = {
            "adapter": share_right(hub, task, records, adapter, task.system),
            "base": share_right(hub, task, records, None, task.base_system or task.system),
        }
    return scores


def write_cards(hub: AdapterHub, scores: Scores, n: int) -> None:
    """Puts the figures on the adapters' cards."""
    for name, shares in scores.items():
        measured = [
            {
                "task_type": "text-generation",
                "dataset_name": f"examples/demo_real, task {name}, seed {SEED}, {n} requests",
                "dataset_split": "heldout",
                "metric_type": "accuracy",
                "metric_name": "right answers" if who == "adapter" else "right answers of the bare base",
                "metric_value": round(share, 4),
            }
            for who, share in shares.items()
        ]
        hub.registry.update(name, evaluation=measured)


def show(scores: Mapping[str, Mapping[str, float]]) -> None:
    """Prints the figures."""
    table = Table("", "adapter", "bare base", title="right answers to held-out requests")
    for name, shares in scores.items():
        table.add_row(name, f"{shares['adapter']:.1%}", f"{shares['base']:.1%}")
    Console().print(table)


def main() -> None:
    """Scores and reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "tasks", nargs="*", help=f"{', '.join(TASKS)}; all that the registry has adapters for"
    )
    parser.add_argument("--base", default="adapterhub-demo-real")
    parser.add_argument("--registry", type=Path, default=demo_registry_folder(real=True))
    parser.add_argument("--n", type=int, default=200, help="requests of each task")
    parser.add_argument("--adapter", help="the adapter of another task, to answer in its own form")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--write-cards", action="store_true", help="put the figures on the adapters' cards")
    args = parser.parse_args()
    if args.adapter and args.write_cards:
        parser.error("--write-cards is for each adapter on its own task: not with --adapter")
    with AdapterHub.from_pretrained(args.base, args.registry) as hub:
        names = args.tasks or [card.name for card in hub.registry.list()]
        scores = score(hub, names, args.n, args.adapter)
        if args.write_cards:
            write_cards(hub, scores, args.n)
    show(scores)
    if args.json:
        args.json.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
