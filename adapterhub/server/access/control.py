"""Who is who: the keys in use, read again when their files change."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from adapterhub.errors import ConfigError
from adapterhub.server.access.caller import Caller
from adapterhub.server.access.keys import ApiKey, find_key, keys_of_environment, read_key_file
from adapterhub.server.access.levels import Level
from adapterhub.server.access.limits import KeyLimits

CHECK_SECONDS = 1.0
"""How often the files are looked at."""
ANONYMOUS = "anonymous"
_log = logging.getLogger(__name__)


class AccessControl:
    """The keys of a server.

    Without any key everybody may do everything, which is for one user on the loopback interface. With keys for
    inference alone, nobody is an admin; with keys for admins alone, inference needs none.

    Args:
        api_key_file: Keys for inference; see `read_key_file`.
        admin_key_file: Keys for admins.
        environment: Where `ADAPTERHUB_API_KEY` and `ADAPTERHUB_ADMIN_KEY` may be.
        clock: Seconds of a monotonic clock.

    Raises:
        ConfigError: A key file or a key is not valid.
    """

    def __init__(
        self,
        api_key_file: Path | None = None,
        admin_key_file: Path | None = None,
        *,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = [(api_key_file, False), (admin_key_file, True)]
        self._of_environment = keys_of_environment(environment)
        self._clock = clock
        self._lock = threading.Lock()
        self.limits = KeyLimits(clock)
        self._keys: tuple[ApiKey, ...] = ()
        self._checked = clock()
        self._read()

    @property
    def needs_key(self) -> bool:
        """Whether inference needs a key."""
        return any(not key.is_admin for key in self._keys)

    def caller(self, token: str | None) -> Caller | None:
        """Who sent a request.

        Args:
            token: The key that the client sent; None without one.

        Returns:
            None if inference needs a key and none was sent, or an unknown one. Where it needs none, an unknown one is
            as none: OpenAI's clients always send one.
        """
        if not self._keys:
            return Caller(ANONYMOUS, Level.ADMIN)
        key = find_key(self._keys, token) if token else None
        if key:
            return Caller.with_key(key)
        return None if self.needs_key else Caller(ANONYMOUS, Level.OPERATOR)

    def is_due(self) -> bool:
        """Whether to call `reload_if_changed`, off the event loop; true for one caller each time."""
        if self._clock() - self._checked < CHECK_SECONDS:
            return False
        self._checked = self._clock()
        return True

    def reload_if_changed(self) -> None:
        """Reads the key files again if they have changed; keys of files that are not valid stay as they were."""
        with self._lock:
            if self._stamp() != self._read_stamp:
                self._read_or_keep()

    def _read_or_keep(self) -> None:
        try:
            self._read()
        except ConfigError as error:
            self._read_stamp = self._stamp()  # not again, and not in the log again, until it has changed
            _log.error("The keys in use stay as they were: %s", error)
        else:
            _log.info("%d keys are in use", len(self._keys))

    def _read(self) -> None:
        self._read_stamp = self._stamp()
        of_files = [
            key for path, is_admin in self._files if path for key in read_key_file(path, is_admin=is_admin)
        ]
        keys = (*self._of_environment, *of_files)
        if len({key.digest for key in keys}) < len(keys):
            raise ConfigError(
                "Two keys are the same.", hint="Keys for inference and for admins, and each holder's, differ."
            )
        self._keys = keys

    def _stamp(self) -> tuple[object, ...]:
        return tuple(_changed_at(path) for path, _ in self._files if path)


def _changed_at(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
