"""Compares families and writes their rows of docs/bases.md: `python -m tests.families [FAMILY ...]`."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

from transformers.utils import logging

from tests.families.comparing import Row, WrongAnswerError, compare
from tests.families.configs import FAMILIES
from tests.families.table import read_rows, write_rows


def main(names: list[str]) -> int:
    """Compares the named families, or all; returns 1 if one is not served right, and nothing is written then."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = {} if not names else read_rows()
    failed = 0
    for family in names or FAMILIES:
        row = _row(family)
        failed += row is None
        if row is not None:
            rows[family] = row
    if not failed:
        write_rows([rows[family] for family in FAMILIES])
    return int(bool(failed))


def _row(family: str) -> Row | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            row = compare(family, Path(folder))
        except WrongAnswerError as error:
            print(f"{family}: WRONG {error}", flush=True)
            return None
        except Exception as error:  # noqa: BLE001  what no user should see
            print(f"{family}: FAILS {type(error).__name__}: {error}", flush=True)
            return None
    print(f"{family}: {row.served} | {row.adapter} | {row.note}", flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
