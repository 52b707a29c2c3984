"""The base's losses and answers, kept on disk: the baseline of every adapter that is compared on the same data.

They are kept under a digest of everything that decides them: the base's fingerprint, how it is stored and computed, the
libraries' versions, the tokens of prompts and records, and the sampling parameters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapterhub._files import write_atomic


class Baselines:
    """A folder of the base's results, one JSON file each. It holds the texts of answers.

    Args:
        folder: It is created when the first result is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: Any, compute: Callable[[], Any]) -> Any:
        """A result that was kept, or else a new one, which is kept.

        Args:
            key: JSON-like data that decides the result.
            compute: Makes the result, JSON-like data.
        """
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = self._folder / f"{digest}.json"
        with suppress(OSError, ValueError):  # it is not there, or damaged
            return json.loads(path.read_bytes())
        result = compute()
        with suppress(OSError):  # such as a full disk; the result is there all the same
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(path, json.dumps(result).encode())
        return result
