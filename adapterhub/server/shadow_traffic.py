"""Shadow traffic: a copy of a share of an alias' requests goes to another version, whose answers nobody sees.

A copy is sent once the request itself is answered, at the lowest priority, and only while there is room: it is dropped
where copies are running already, requests wait, or the engine is full. Texts are compared and not kept.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from adapterhub.config import MAX_PRIORITY
from adapterhub.errors import AdapterHubError
from adapterhub.hub import AdapterHub
from adapterhub.registry import Ref
from adapterhub.registry.references import LATEST
from adapterhub.requests.generation import Generation
from adapterhub.server.lifecycle import Lifecycle

LOWEST_PRIORITY = -MAX_PRIORITY
_MAX_LOOKUPS = 64
_log = logging.getLogger(__name__)


@dataclass
class ShadowCounts:
    """What became of the copies of an alias' requests that one version got.

    Attributes:
        same: Its answer had the same text.
        different: It had another text.
        failed: It could not answer.
        dropped: The copy was not sent, or refused, for there was no room.
        seconds: Time of its answers in the engine.
        seconds_of_main: The same of the answers that they were compared with.
    """

    same: int = 0
    different: int = 0
    failed: int = 0
    dropped: int = 0
    seconds: float = 0.0
    seconds_of_main: float = 0.0

    @property
    def sent(self) -> int:
        """Copies that were sent and have ended."""
        return self.same + self.different + self.failed


class ShadowTraffic:
    """Sends copies of requests to shadows, and counts what comes of it. Used on the server's event loop.

    Args:
        hub: Answers them, and knows the aliases.
        lifecycle: No copies are sent while the server shuts down.
        max_running: Maximum number of copies at the same time; 0 sends none.

    Attributes:
        counts: By the alias, such as `sql@prod`, and the version that got its copies, such as `sql@5`.
    """

    def __init__(self, hub: AdapterHub, lifecycle: Lifecycle, *, max_running: int) -> None:
        self.counts: dict[tuple[str, str], ShadowCounts] = {}
        self._hub = hub
        self._lifecycle = lifecycle
        self._max_running = max_running
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def copy(
        self,
        adapter: str | None,
        answered: Sequence[Generation | None],
        ask: Callable[[str], Awaitable[Sequence[Generation]]],
    ) -> None:
        """Sends a request again in the background, if its alias has a shadow and chance wills; returns at once.

        Args:
            adapter: As the request named it.
            answered: Its answers; None is one that was aborted, of which no copy is sent.
            ask: Sends the request to the version of a reference, at `LOWEST_PRIORITY`.
        """
        whole = [one for one in answered if one]
        if not self._max_running or adapter is None or len(whole) < len(answered):
            return
        if not _is_alias(adapter) or len(self._tasks) >= _MAX_LOOKUPS + self._max_running:
            return
        task = asyncio.ensure_future(self._copy(Ref.parse(adapter), whole, ask))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _copy(
        self,
        ref: Ref,
        answered: Sequence[Generation],
        ask: Callable[[str], Awaitable[Sequence[Generation]]],
    ) -> None:
        try:
            shadow = await self._hub._run_off_loop(self._chosen_shadow, ref)
            waiting = (await self._hub._run_off_loop(self._hub.stats)).waiting if shadow else 0
        except AdapterHubError:  # the alias was removed meanwhile, or the hub is closed
            return
        if shadow is None:
            return
        counts = self.counts.setdefault((str(ref), shadow), ShadowCounts())
        if self._lifecycle.draining or waiting or self._running >= self._max_running:
            counts.dropped += 1
            return
        self._running += 1
        try:
            await self._compare(counts, answered, lambda: ask(shadow))
        finally:
            self._running -= 1

    async def _compare(
        self,
        counts: ShadowCounts,
        answered: Sequence[Generation],
        ask: Callable[[], Awaitable[Sequence[Generation]]],
    ) -> None:
        try:
            copies = await ask()
        except Exception as error:  # noqa: BLE001  of a copy, which concerns no client
            if getattr(error, "retryable", False):
                counts.dropped += 1
            else:
                counts.failed += 1
                _log.warning("A shadow could not answer: %s", type(error).__name__)
            return
        counts.seconds += _seconds(copies)
        counts.seconds_of_main += _seconds(answered)
        if _texts(copies) == _texts(answered):
            counts.same += 1
        else:
            counts.different += 1

    def _chosen_shadow(self, ref: Ref) -> str | None:
        """The version that gets a copy of this request; None for none."""
        alias = self._hub.registry.aliases(ref.name).get(ref.alias or "")
        if alias is None or alias.shadow is None or random.random() * 100 >= alias.shadow.percent:  # noqa: S311
            return None
        return f"{ref.name}@{alias.shadow.version}"


def _is_alias(adapter: str) -> bool:
    name, at, pointer = adapter.partition("@")
    is_blend = ":" in adapter or "+" in adapter
    return bool(name and at) and not is_blend and not pointer.isdigit() and pointer != LATEST


def _seconds(generations: Sequence[Generation]) -> float:
    return max(one.usage.seconds for one in generations)


def _texts(generations: Sequence[Generation]) -> list[str]:
    return [completion.text for one in generations for completion in one.completions]
