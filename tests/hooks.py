"""The pre-commit checks that ruff does not make: `python -m tests.hooks CHECK FILE...` exits with 1 if a file fails."""

import sys
from collections.abc import Callable
from pathlib import Path

import yaml

MAX_BYTES = 1 << 20


def end_of_file(path: Path) -> str | None:
    """What is wrong with the ends of a text file's lines."""
    data = path.read_bytes()
    if data and (not data.endswith(b"\n") or data.endswith(b"\n\n")):
        return "does not end with one newline"
    if any(line.endswith((b" ", b"\t", b"\r")) for line in data.split(b"\n")):
        return "has white space at the end of a line"
    return None


def large_files(path: Path) -> str | None:
    """Whether a file is too large for the repository."""
    size = path.stat().st_size
    return f"has {size:,} bytes; {MAX_BYTES:,} are allowed" if size > MAX_BYTES else None


def valid_yaml(path: Path) -> str | None:
    """Whether a file is no YAML."""
    try:
        list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        return f"is not valid YAML: {error}"
    return None


CHECKS: dict[str, Callable[[Path], str | None]] = {
    "end-of-file": end_of_file,
    "large-files": large_files,
    "yaml": valid_yaml,
}


def main(check: str, *names: str) -> int:
    """Prints what is wrong, and returns how the process exits."""
    problems = [f"{name} {problem}" for name in names if (problem := CHECKS[check](Path(name)))]
    print("\n".join(problems), end="\n" if problems else "")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
