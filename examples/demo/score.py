"""Scores the bare base and every adapter on every task's held-out requests.

    python -m examples.demo.score --n 200 --json scores.json --write-cards
    python -m examples.demo.score --n 200 --merged

Answers come from `adapterhub.AdapterHub`, greedily, on the 4-bit base. The same seed asks the same requests. The second
line merges each adapter and compares the merged model with it on held-out answers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from adapterhub import AdapterHub
from adapterhub.demo import demo_registry_folder
from adapterhub.export import MergeVerification, MergeVerifier
from examples.demo.data import TASKS, write
from examples.demo.tasks import Record

SEED = 3
BATCH = 16
MAX_TOKENS = 160
Scores = dict[str, dict[str, dict[str, float]]]
"""Adapter ("base" for none) -> task -> part of its requests ("all" for every one) -> share of right answers."""


def answers(hub: AdapterHub, adapter: str | None, records: list[Record]) -> Iterator[str]:
    """The greedy answers to the records' requests, in their order."""
    for start in range(0, len(records), BATCH):
        part = records[start : start + BATCH]
        if "tools" not in part[0]:
            prompts = [record["messages"][:-1] for record in part]
            yield from (
                a.text for a in hub.generate_batch(prompts, adapter, temperature=0, max_tokens=MAX_TOKENS)
            )
            continue
        for record in part:  # each with tools of its own
            prompt, tools = record["messages"][:-1], record["tools"]
            yield hub.generate(prompt, adapter, tools=tools, temperature=0, max_tokens=MAX_TOKENS).text


def score(hub: AdapterHub, n: int, seed: int = SEED) -> Scores:
    """Share of right answers of the base and of every adapter, on `n` held-out requests of every task."""
    requests = {task: module.generate("heldout", n, seed) for task, module in TASKS.items()}
    pairs = [(adapter, task) for adapter in ("base", *TASKS) for task in TASKS]
    scores: Scores = {}
    for adapter, task in track(pairs, "scoring", console=Console(stderr=True)):
        records = requests[task]
        given = answers(hub, None if adapter == "base" else adapter, records)
        right = [TASKS[task].score(record, answer) for record, answer in zip(records, given, strict=True)]
        scores.setdefault(adapter, {})[task] = shares(records, right)
    return scores


def shares(records: list[Record], right: list[bool]) -> dict[str, float]:
    """Share of right answers among all requests, and among those of each part: a language, or what tools do."""
    parts: dict[str, list[bool]] = {}
    for record, ok in zip(records, right, strict=True):
        for part in ("all", *_parts(record)):
            parts.setdefault(part, []).append(ok)
    return {part: sum(answered) / len(answered) for part, answered in sorted(parts.items())}


def _parts(record: Record) -> tuple[str, ...]:
    if "tools" not in record:
        return (f"language {record['check']['language']}",)
    if "text" in record["check"]:
        return ("results in words",)
    return ("calls", f"calls, tools offered: {len(record['tools'])}")


def verify_merges(hub: AdapterHub, n: int, seed: int = SEED) -> dict[str, MergeVerification | None]:
    """How far each adapter's merged model is from the adapter, on the answers to `n` held-out requests at most."""
    found = {}
    for task in track(TASKS, "merging and comparing", console=Console(stderr=True)):
        with tempfile.TemporaryDirectory() as scratch:
            heldout = write(task, "heldout", n, seed, Path(scratch))
            merged = hub.merge(task, Path(scratch) / task, verify=MergeVerifier(heldout))
            found[task] = merged.verification
    return found


def write_cards(hub: AdapterHub, scores: Scores, n: int) -> None:
    """Puts each adapter's figures on its card, beside the losses of its training."""
    for task in TASKS:
        card = hub.registry.resolve(task)
        unchanged = [e.model_dump() for e in card.evaluation if e.metric_type != "accuracy"]
        own = scores[task][task]
        others = max(scores[other][task]["all"] for other in TASKS if other != task)
        rows = [(f"right answers, {part}", value) for part, value in own.items() if part != "all"]
        rows = [("right answers", own["all"]), *(rows if len(rows) > 1 else [])]
        rows += [("right answers of the bare base", scores["base"][task]["all"])]
        rows += [("right answers of the best other adapter", others)]
        measured = [
            {
                "task_type": "text-generation",
                "dataset_name": f"examples/demo/tasks/{task}_task.py, seed {SEED}, {n} requests",
                "dataset_split": "heldout",
                "metric_type": "accuracy",
                "metric_name": name,
                "metric_value": round(value, 4),
            }
            for name, value in rows
        ]
        hub.registry.update(task, evaluation=[*unchanged, *measured])


def show(scores: Scores) -> None:
    """Prints the matrix."""
    table = Table("", *TASKS, title="right answers to held-out requests")
    for adapter, row in scores.items():
        table.add_row(adapter, *(f"{row[task]['all']:.1%}" for task in TASKS))
    Console().print(table)
    for task in TASKS:
        own = scores[task][task]
        if len(own) > 2:
            print(f"{task}: " + "; ".join(f"{part} {value:.1%}" for part, value in own.items()))


def main() -> None:
    """Scores and reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--registry", type=Path, default=demo_registry_folder())
    parser.add_argument("--n", type=int, default=200, help="requests of each task")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--merged", action="store_true", help="compare merged models instead; see above")
    parser.add_argument("--write-cards", action="store_true", help="put the figures on the adapters' cards")
    args = parser.parse_args()
    with AdapterHub.from_pretrained(registry=args.registry) as hub:
        if args.merged:
            for task, found in verify_merges(hub, args.n).items():
                print(f"{task}: {found}\n")
            return
        scores = score(hub, args.n)
        if args.write_cards:
            write_cards(hub, scores, args.n)
    show(scores)
    if args.json:
        args.json.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
