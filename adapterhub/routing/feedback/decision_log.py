"""A record of decisions, as JSON Lines, and corrections that come back from it. Nothing is kept unless asked for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from adapterhub.errors import RoutingError
from adapterhub.routing.decision import RouteDecision
from adapterhub.routing.routes import LONGEST_EXAMPLE

_MOST_BYTES = 64 * 2**20
_TOP = 5


class DecisionLog:
    """Appends decisions to a file; several threads may share one.

    Args:
        path: The file; made if it is not there, readable by its owner only.
        texts: Also keep the requests' texts, which people may have meant to be private. Off unless asked for.
    """

    def __init__(self, path: str | Path, *, texts: bool = False) -> None:
        self.path = Path(path)
        self.texts = texts
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(mode=0o600)

    def write(self, decision: RouteDecision, text: str) -> None:
        """Adds one decision."""
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "adapter": decision.adapter,
            "best": decision.best,
            "confidence": round(decision.confidence, 4),
            "threshold": round(decision.threshold, 4),
            "reason": decision.reason,
            "scores": {name: round(score, 4) for name, score in decision.ranked(_TOP)},
            "language": decision.language,
            "characters": len(text),
            "router_version": decision.router_version,
        }
        if self.texts:
            entry["text"] = text[:LONGEST_EXAMPLE]
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        with self._lock, self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line)


class Correction(NamedTuple):
    """What a person says about a request: the adapter it belongs to, or None for no adapter."""

    text: str
    adapter: str | None


def read_corrections(path: str | Path) -> Iterator[Correction]:
    """Reads corrections: lines of JSON with `text` and `correct`, the right adapter's name, or null for none.

    Lines without `correct` are decisions that nobody looked at, and are passed over; so a log kept with texts can be
    corrected in an editor and read back.

    Raises:
        RoutingError: A line is no such JSON, or the file is larger than 64 MiB.
    """
    path = Path(path)
    if path.stat().st_size > _MOST_BYTES:
        raise RoutingError(f"{path} is larger than 64 MiB.", hint="Give a part of it.")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError) as error:
                raise RoutingError(f"Line {number} of {path} is not JSON.") from error
            if not isinstance(entry, dict) or "correct" not in entry:
                continue
            text, adapter = entry.get("text"), entry["correct"]
            if not isinstance(text, str) or not isinstance(adapter, str | None):
                raise RoutingError(
                    f"Line {number} of {path} has no text, or its adapter is no name.",
                    hint='A line is {"text": "...", "correct": "name"}; log with texts to have them.',
                )
            yield Correction(text, adapter)
