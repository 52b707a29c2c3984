"""Fuzzes all targets: `python -m tests.fuzz [--minutes 30] [TARGET ...]`."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import TARGETS

ENGINES = ("hypothesis", "atheris")
JOBS = 2
GRACE_SECONDS = 300
"""For starting, and for shrinking an example that fails."""
OUTPUT = Path(".fuzz")
_COUNT = re.compile(r"number_of_executed_units:\s*(\d+)")


@dataclass(frozen=True)
class Run:
    """The outcome of one target under one engine."""

    target: str
    engine: str
    examples: int
    status: str


def fuzz(target: str, engine: str, seconds: float) -> Run:
    """Runs a worker and keeps its output if it failed."""
    command = [sys.executable, "-m", "tests.fuzz.worker", target, engine, str(seconds)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds + GRACE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Run(target, engine, 0, "did not end")
    output = done.stdout + done.stderr
    found = _COUNT.search(output)
    status = "ok" if done.returncode == 0 and found else f"FAILED ({done.returncode})"
    if status != "ok":
        OUTPUT.mkdir(exist_ok=True)
        (OUTPUT / f"{target}-{engine}.log").write_text(output, encoding="utf-8")
    return Run(target, engine, int(found[1]) if found else 0, status)


def main() -> None:
    """Fuzzes, prints a line for each run, and fails if one did."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all if none is named"
    )
    parser.add_argument("--minutes", type=float, default=30, help="for all targets together (default: 30)")
    arguments = parser.parse_args()
    targets = arguments.targets or list(TARGETS)
    work = [(target, engine) for target in targets for engine in ENGINES]
    seconds = arguments.minutes * 60 * JOBS / len(work)
    failed = False
    with ThreadPoolExecutor(JOBS) as pool:
        for run in pool.map(lambda one: fuzz(*one, seconds), work):
            print(f"{run.target:20} {run.engine:12} {run.examples:8,} examples  {run.status}", flush=True)
            failed |= run.status != "ok"
    if failed:
        sys.exit(f"The output of the failed runs is in {OUTPUT}/.")


if __name__ == "__main__":
    main()
