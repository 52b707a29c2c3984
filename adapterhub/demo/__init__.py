"""The shipped demo: a small base, four adapters and some requests that they were not trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DemoRequest:
    """A request that was held out of training.

    Attributes:
        adapter: The adapter that should answer it; None for the bare base.
        messages: The conversation.
        tools: The functions that the assistant may call, or None.
    """

    adapter: str | None
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None

    @property
    def text(self) -> str:
        """The last message."""
        return str(self.messages[-1]["content"])


def demo_registry_folder() -> Path:
    """The shipped adapters: package data in a wheel, the top-level `adapters/` in a source checkout."""
    packaged = Path(__file__).parent / "adapters"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "adapters"


def demo_requests() -> list[DemoRequest]:
    """The requests of `adapterhub demo`, at least two for each adapter and two for the base."""
    content = json.loads((Path(__file__).parent / "requests.json").read_text(encoding="utf-8"))
    return [DemoRequest(**request) for request in content]
