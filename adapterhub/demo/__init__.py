"""The shipped demos: adapters for a small base and for a real one, and requests that they were not trained on."""

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


def demo_registry_folder(*, real: bool = False) -> Path:
    """The shipped adapters: package data in a wheel, folders of the repository in a source checkout.

    Args:
        real: Those for SmolLM2-135M-Instruct in place of those for the base that ships.
    """
    packaged = Path(__file__).parent / ("adapters-real" if real else "adapters")
    checkout = Path(__file__).parents[2] / ("examples/demo_real/adapters" if real else "adapters")
    return packaged if packaged.is_dir() else checkout


def demo_requests(*, real: bool = False) -> list[DemoRequest]:
    """The requests of `adapterhub demo`, at least two for each adapter and one for the base.

    Args:
        real: Those of `adapterhub demo --real`.
    """
    name = "requests-real.json" if real else "requests.json"
    content = json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
    return [DemoRequest(**request) for request in content]
