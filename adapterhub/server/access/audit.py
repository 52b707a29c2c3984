"""The audit log: one line of JSON for each action of an admin."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from adapterhub.errors import AdapterHubError

AUDIT_FILE = ".audit.jsonl"
"""The log in a registry's folder, where no other is chosen; hidden files are no part of a registry."""
_log = logging.getLogger(__name__)


class AuditLog:
    """Appends to a file that only its owner may read. Any thread may call it.

    The file is opened for each line, so it may be renamed while the server runs (logrotate).

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    @contextmanager
    def action(self, name: str, *, adapter: str, key: str, request_id: str) -> Iterator[None]:
        """Writes one line when an action has ended: `ok`, or the code of the error that it raised.

        Args:
            name: The action, such as `add`.
            adapter: The reference that it was about.
            key: The name of the admin's key.
            request_id: The request's id.
        """
        result = "ok"
        try:
            yield
        except BaseException as error:
            result = error.code if isinstance(error, AdapterHubError) else "internal_error"
            raise
        finally:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._write(
                {
                    "time": now,
                    "key": key,
                    "action": name,
                    "adapter": adapter[:200],
                    "result": result,
                    "request_id": request_id,
                }
            )

    def _write(self, record: dict[str, str]) -> None:
        line = json.dumps(record, ensure_ascii=True) + "\n"
        try:
            with self._lock:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
                descriptor = os.open(self._path, flags, 0o600)
                try:
                    os.write(descriptor, line.encode())
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:  # the action has happened, so its caller hears about the action
            _log.error(
                "The audit log cannot be written (%s); the line was: %s", error.strerror, line.rstrip()
            )
