"""A log of decisions, as JSON Lines."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

from adapterhub.routing.decision import RouteDecision
from adapterhub.routing.routes import MAX_EXAMPLE_CHARS

_TOP_K = 5
"""Scores that are logged."""


class DecisionLog:
    """Appends decisions to a file; several threads may share one.

    Args:
        path: The file; created if missing, readable by its owner only.
        texts: Also log the requests' texts, which may be private.
    """

    def __init__(self, path: str | Path, *, texts: bool = False) -> None:
        self.path = Path(path)
        self.texts = texts
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(mode=0o600)

    def write(self, decision: RouteDecision, text: str) -> None:
        """Appends one decision."""
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "adapter": decision.adapter,
            "best": decision.best,
            "confidence": round(decision.confidence, 4),
            "threshold": round(decision.threshold, 4),
            "reason": decision.reason,
            "scores": {name: round(score, 4) for name, score in decision.ranked(_TOP_K)},
            "script": decision.script,
            "characters": len(text),
            "router_version": decision.router_version,
        }
        if self.texts:
            entry["text"] = text[:MAX_EXAMPLE_CHARS]
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        with self._lock, self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(line)
