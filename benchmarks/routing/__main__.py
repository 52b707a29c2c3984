"""The command; see the package."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import benchmarks.routing
from benchmarks.common import machine
from benchmarks.routing.data import Clinc
from benchmarks.routing.demo import demo, languages
from benchmarks.routing.figures import Figures
from benchmarks.routing.quality import accuracy, encoder, incremental, robustness
from benchmarks.routing.speed import speed

PARTS: dict[str, Callable[[Clinc, argparse.Namespace], Figures]] = {
    "accuracy": accuracy,
    "speed": speed,
    "incremental": incremental,
    "robustness": robustness,
    "languages": languages,
    "demo": demo,
    "encoder": encoder,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=benchmarks.routing.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="the folder of data_full.json and domains.json"
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=_numbers, default=[10, 11, 12, 13, 14], help="of the draws: 10,11,12")
    parser.add_argument("--routes", type=int, default=1000, help="of the large router whose speed is taken")
    parser.add_argument("--queries", type=int, default=4500, help="whose speed is taken")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure there")
    options = parser.parse_args(arguments)
    clinc, rows = Clinc.read(options.data), []
    for part in options.part:
        figures = PARTS[part](clinc, options)
        figures.show()
        rows += figures.rows
    if options.json:
        content = {"seeds": options.seeds, "machine": machine("cpu"), "figures": rows}
        options.json.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
