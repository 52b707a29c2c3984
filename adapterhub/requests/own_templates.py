"""The chat templates in adapters' files, for adapters that were registered when the base had another template.

Requests are prepared one after another, so none waits here for a store: files that are not on this machine are
downloaded in a thread, and requests that need them meanwhile get an error that says to ask again.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future

from adapterhub.errors import RegistryUnavailableError
from adapterhub.registry import AdapterCard, AdapterRegistry
from adapterhub.registry.prompt_files import read_prompt_profile

MAX_SECONDS = 60.0
"""After them a download that has not ended counts as failed, and the next request starts another."""
_log = logging.getLogger(__name__)


class OwnTemplates:
    """Templates by version, each read once. Any thread may call `of`.

    Args:
        registry: The adapters.
    """

    def __init__(self, registry: AdapterRegistry) -> None:
        self._registry = registry
        self._found: dict[str, Future[str | None]] = {}
        self._begun: dict[str, float] = {}
        self._lock = threading.Lock()

    def of(self, card: AdapterCard) -> str | None:
        """The template in a version's files; None if they have none.

        Raises:
            RegistryUnavailableError: The files are being downloaded.
            AdapterHubError: They could not be downloaded or read; the next call tries again.
        """
        key = f"{card.ref} {card.digest}"
        with self._lock:
            found = self._found.get(key) or self._start(key, card)
            if found.done() and found.exception():
                del self._found[key]
            elif not found.done():
                if time.monotonic() - self._begun[key] > MAX_SECONDS:
                    del self._found[key]
                raise RegistryUnavailableError(
                    f"The tokenizer files of {card.ref} are being downloaded.", hint="Ask again in a second."
                )
        return found.result()

    def _start(self, key: str, card: AdapterCard) -> Future[str | None]:
        found: Future[str | None] = Future()
        self._found[key], self._begun[key] = found, time.monotonic()
        if self._registry.expected_folder(card).is_dir():
            self._read(found, card)
        else:  # a daemon: it may hang as long as the store does
            threading.Thread(
                target=self._read, args=(found, card), name="adapterhub-template", daemon=True
            ).start()
        return found

    def _read(self, found: Future[str | None], card: AdapterCard) -> None:
        try:
            own, _ = read_prompt_profile(self._registry.small_files(card), None)
        except BaseException as error:  # noqa: BLE001  for who asks
            found.set_exception(error)
            return
        used = "its own is used" if own.chat_template else "it has none of its own, so the base's is used"
        _log.warning("The base's chat template is another than when %s was registered; %s.", card.ref, used)
        found.set_result(own.chat_template)
