"""What a command of `adapterhub export` asks of a format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.registry import AdapterRegistry


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported.

    Attributes:
        registry: The registry.
        name: The adapter, or a blend.
        out: Where to.
        options: The options of the format that were given, by the name of their parameter.
        progress: Called with how much is done, how much there is, and of what.
    """

    registry: AdapterRegistry
    name: str
    out: Path
    options: Mapping[str, Any]
    progress: Callable[[int, int, str], None]
