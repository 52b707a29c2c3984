"""`import adapterhub` and `adapterhub --help` are light: nothing heavy is imported before it is needed."""

import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "sklearn", "bitsandbytes", "langchain_core", "numpy", "pydantic")


def run(*command: str) -> float:
    """Seconds of processor time: a start-up waits for nothing, and other work on the machine is not its fault."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def best_of(times: int, *command: str) -> float:
    """Other work on the machine only ever adds time, so the fastest run counts."""
    return min(run(*command) for _ in range(times))


@pytest.mark.parametrize("module", ["adapterhub", "adapterhub.cli.main"])
def test_nothing_heavy_is_imported(module: str):
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_registry_needs_no_torch():
    code = "import sys, adapterhub.registry; print(*[m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_import_takes_less_than_100_ms():
    bare = best_of(5, sys.executable, "-c", "pass")
    assert best_of(5, sys.executable, "-c", "import adapterhub") - bare < 0.1


def test_help_takes_less_than_250_ms():
    assert best_of(5, sys.executable, "-m", "adapterhub.cli.main", "--help") < 0.25
