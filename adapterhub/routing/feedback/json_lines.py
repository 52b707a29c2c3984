"""Files of JSON Lines, read with the line number of each object for messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapterhub._files import os_errors_as
from adapterhub.errors import DatasetError

_MAX_BYTES = 64 * 2**20


def read_json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with its location, as `Line 3 of FILE`; blank lines are skipped.

    Raises:
        DatasetError: The file cannot be read or is larger than 64 MiB, or a line is no JSON object in UTF-8.
    """
    path = Path(path)
    with os_errors_as(DatasetError, "The file could not be read"):
        if path.stat().st_size > _MAX_BYTES:
            raise DatasetError(f"{path} is larger than 64 MiB.", hint="Give a part of it.")
        content = path.read_bytes()
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        location = f"Line {number} of {path}"
        try:
            entry = json.loads(line.decode())
        except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested too deep
            raise DatasetError(f"{location} is not JSON in UTF-8.") from error
        if not isinstance(entry, dict):
            raise DatasetError(f"{location} is no JSON object.")
        yield location, entry
