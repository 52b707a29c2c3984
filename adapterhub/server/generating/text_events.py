"""Events that differ only in their text: what is the same in all of them is serialised once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import to_json

from adapterhub.server.generating.streaming import event

_TEXT = uuid.uuid4().hex
"""Stands for the text; no client knows it, so no other field has it."""


class TextEvents:
    """Makes the events of one choice that only add text; the same bytes as `event` gives.

    Args:
        fields: From a text to the event's data.
    """

    def __init__(self, fields: Callable[[str], Mapping[str, Any]]) -> None:
        self._before, self._after = event(fields(_TEXT)).split(to_json(_TEXT))

    def event(self, text: str) -> bytes:
        """The event that adds a text."""
        return self._before + to_json(text) + self._after
