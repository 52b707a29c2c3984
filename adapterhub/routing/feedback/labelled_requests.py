"""Labelled requests to evaluate a router on, as JSON Lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adapterhub.errors import DatasetError
from adapterhub.routing.feedback.json_lines import read_json_lines


class LabelledRequests(NamedTuple):
    """Requests by their adapter, and out-of-scope requests: the arguments of `AdapterRouter.evaluate`."""

    examples: dict[str, list[str]]
    out_of_scope: list[str]


def read_labelled_requests(path: str | Path, routes: Sequence[str]) -> LabelledRequests:
    """Reads lines of JSON with `text` and `adapter`, null for an out-of-scope request.

    Args:
        path: The file.
        routes: The names that `adapter` may be.

    Raises:
        DatasetError: A line is something else, names none of the routes, or there is no line.
    """
    found = LabelledRequests({}, [])
    for location, entry in read_json_lines(path):
        text, adapter = entry.get("text"), entry.get("adapter", "")
        if not isinstance(text, str) or not isinstance(adapter, str | None):
            raise DatasetError(
                f"{location} has no text.", hint='A line is {"text": "...", "adapter": "name"}.'
            )
        if adapter is not None and adapter not in routes:
            raise DatasetError(
                f"{location} names {adapter!r}, which is no route.",
                hint=f"There are: {', '.join(routes[:10])}; null stands for no adapter.",
            )
        (found.out_of_scope if adapter is None else found.examples.setdefault(adapter, [])).append(text)
    if not found.examples and not found.out_of_scope:
        raise DatasetError(f"{path} holds no requests.", hint='A line is {"text": "...", "adapter": "name"}.')
    return found
