"""Compares families and writes their rows of docs/bases.md: `python -m tests.families [FAMILY ...]`."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

from transformers.utils import logging

from tests.families.comparing import TableRow, WrongAnswerError, compare
from tests.families.configs import FAMILIES
from tests.families.table import read_rows, write_rows


def main(names: list[str]) -> int:
    """Compares the named families, or all, and returns 1 if one is not served right: it is left without a row."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found = {family: _row(family) for family in names or FAMILIES}
    rows = (read_rows() if names else {}) | found
    write_rows([row for family in FAMILIES if (row := rows.get(family))])
    return int(None in found.values())


def _row(family: str) -> TableRow | None:
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
