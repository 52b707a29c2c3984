"""The tables in docs/bases.md, written and read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.families.comparing import TableRow
from tests.families.configs import NO_DECODERS

DOCUMENT = Path(__file__).parents[2] / "docs" / "bases.md"
_BEGIN, _END = "<!-- written by `python -m tests.families` -->", "<!-- end -->"
_HEAD = "| family | served | adapter | why not more |\n| --- | --- | --- | --- |"


def read_rows() -> dict[str, TableRow]:
    """The rows of the document, by family."""
    table = _parts(DOCUMENT.read_text(encoding="utf-8"))[1].split(_HEAD)[1].split("\n\n")[0]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines())
    return {row[0]: TableRow(*row) for row in cells}


def write_rows(rows: Sequence[TableRow]) -> None:
    """Replaces the tables of the document."""
    before, _, after = _parts(DOCUMENT.read_text(encoding="utf-8"))
    DOCUMENT.write_text(f"{before}{_BEGIN}\n\n{_tables(rows)}\n\n{_END}{after}", encoding="utf-8")


def _parts(text: str) -> tuple[str, str, str]:
    """What stands before, within and after the marks."""
    before, rest = text.split(_BEGIN)
    written, after = rest.split(_END)
    return before, written, after


def _tables(rows: Sequence[TableRow]) -> str:
    counts = Counter(row.served for row in rows)
    summary = ", ".join(f"{count} {served}" for served, count in counts.most_common())
    lines = [f"| {row.family} | {row.served} | {row.adapter} | {row.note} |" for row in rows]
    others = [f"| {family} | {reason} |" for family, reason in sorted(NO_DECODERS.items())]
    return "\n".join(
        [
            f"Of {len(rows)} families: {summary}.\n",
            _HEAD,
            *lines,
            "\nNot compared:\n",
            "| model type | why |\n| --- | --- |",
            *others,
        ]
    )
