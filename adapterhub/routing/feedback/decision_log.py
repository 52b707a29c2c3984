"""A log of decisions, as JSON Lines."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from adapterhub._files import os_errors_as, user_path
from adapterhub.errors import ConfigError
from adapterhub.routing.decision import RouteDecision
from adapterhub.routing.routes import MAX_EXAMPLE_CHARS

_log = logging.getLogger(__name__)
_TOP_K = 5
"""Scores that are logged."""


class DecisionLog:
    """Appends decisions to a file; several threads may share one.

    Args:
        path: The file; created if missing, readable by its owner only.
        texts: Also log the requests' texts, which may be private.

    Raises:
        ConfigError: The file cannot be created.
    """

    def __init__(self, path: str | Path, *, texts: bool = False) -> None:
        self.path = user_path(path, ConfigError)
        self.texts = texts
        self._lock = threading.Lock()
        self._failing = False
        with os_errors_as(ConfigError, "The decision log could not be created"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)

    def write(self, decision: RouteDecision, text: str) -> None:
        """Appends one decision; one that cannot be written, as on a full disk, is left out with a warning."""
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
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
        with self._lock:
            try:
                _append(self.path, line)
                self._failing = False
            except OSError as error:  # routing goes on without its log
                if not self._failing:
                    _log.warning("Decisions cannot be logged to %s: %s", self.path, error.strerror)
                self._failing = True


def _append(path: Path, line: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                file.truncate(end)  # half a line would make the file unreadable
            raise
