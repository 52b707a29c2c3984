"""Keeps what is known of a server, and what it has loaded, in line with the truth and with what is wanted."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from adapterhub.errors import AdapterHubError
from adapterhub.vllm.replica import Replica

_log = logging.getLogger(__name__)


class Reconciler:
    """Probes one server for as long as it runs: on a timer, and when it has failed.

    Args:
        replica: The server.
        seconds: How often.

    Attributes:
        probe: Done when the probe has ended that is due now; done while none is.
    """

    def __init__(self, replica: Replica, *, seconds: float) -> None:
        self._replica = replica
        self._seconds = seconds
        self._due = asyncio.Event()
        self.probe: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())

    def failed(self) -> None:
        """A request has found the server unavailable, or without an adapter: probes it as soon as its circuit says."""
        if self.probe.done() and not self._replica.circuit.delay:
            self.probe = asyncio.get_running_loop().create_future()
        self._due.set()

    async def _run(self) -> None:
        while True:
            self._due.clear()
            await self._reconcile()
            await self._pause()

    async def _reconcile(self) -> None:
        try:
            await self._replica.probe()
        except AdapterHubError as error:
            _log.warning("%s: %s", self._replica.client.url, error.message)
        if not self.probe.done():
            self.probe.set_result(None)

    async def _pause(self) -> None:
        if self._replica.circuit.closed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), self._seconds)
        if not self._replica.circuit.closed:
            await asyncio.sleep(self._replica.circuit.delay)

    async def aclose(self) -> None:
        """Probes no more; who waits for a probe waits no longer."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self.probe.done():
            self.probe.set_result(None)
