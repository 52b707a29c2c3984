"""Fuzzes one target for some seconds: `python -m tests.fuzz.worker TARGET hypothesis|atheris SECONDS`.

An example that fails is printed with its traceback, and the process ends with another status than 0.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import pkgutil
import resource
import sys
import time
from pathlib import Path
from typing import Any

CORPUS = Path(".fuzz")
LARGEST_INPUT = 4096
ONE_EXAMPLE_SECONDS = 60
MEMORY = 12 * 2**30
"""Bytes of address space; torch alone reserves several GiB."""


def with_hypothesis(name: str, seconds: float) -> int:
    """Draws examples that no run has seen; returns their number."""
    from hypothesis import seed

    from tests.fuzz.targets import TARGETS

    count, end = 0, time.monotonic() + seconds
    target = TARGETS[name]
    CORPUS.mkdir(exist_ok=True)
    last = CORPUS / f"{name}-last-example.txt"  # what a process that crashes was doing

    def counted(example: Any, check: Any = target.check) -> None:
        nonlocal count
        count += 1
        faulthandler.dump_traceback_later(ONE_EXAMPLE_SECONDS, exit=True)
        last.write_text(repr(example), encoding="utf-8", errors="backslashreplace")
        check(example)

    object.__setattr__(target, "check", counted)
    while time.monotonic() < end:
        seed(int.from_bytes(os.urandom(8)))(target.test(max_examples=100, derandomize=False, database=None))()
    faulthandler.cancel_dump_traceback_later()
    return count


def with_atheris(name: str, seconds: float) -> None:
    """Steers the target's strategy by coverage; libFuzzer prints the number of examples and ends the process."""
    import atheris

    with atheris.instrument_imports(include=["adapterhub"]):
        import adapterhub

        for module in pkgutil.walk_packages(adapterhub.__path__, "adapterhub."):
            importlib.import_module(module.name)
    from tests.fuzz.targets import TARGETS

    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    run = TARGETS[name].test(derandomize=False, database=None).hypothesis.fuzz_one_input
    flags = {
        "max_total_time": int(seconds),
        "timeout": ONE_EXAMPLE_SECONDS,
        "max_len": LARGEST_INPUT,
        "len_control": 0,  # a strategy needs some bytes before it draws anything
        "rss_limit_mb": MEMORY >> 20,
        "print_final_stats": 1,
        "artifact_prefix": f"{corpus.parent}/{name}-",
    }
    atheris.Setup([name, str(corpus), *(f"-{key}={value}" for key, value in flags.items())], run)
    atheris.Fuzz()


def main(name: str, engine: str, seconds: str) -> None:
    """Fuzzes one target."""
    faulthandler.enable()  # a crash of a native library says where
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if engine == "atheris":
        with_atheris(name, float(seconds))
    else:
        print(f"stat::number_of_executed_units: {with_hypothesis(name, float(seconds))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
