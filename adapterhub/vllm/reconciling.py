"""Keeps what is known of a server, and what it has loaded, in line with the truth and with what is wanted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

from adapterhub.errors import AdapterHubError
from adapterhub.vllm.adapter_folders import AdapterFolders
from adapterhub.vllm.replica import Replica
from adapterhub.vllm.wanted_adapters import RegisteredAdapters, WantedAdapters, obsolete

_log = logging.getLogger(__name__)


class Reconciler:
    """Reconciles one server for as long as it runs: on a timer, and when a request finds that something is wrong.

    A probe learns whether the server answers and what it has loaded. Then what is wanted is loaded, and what the
    registry no longer has is unloaded after draining. Names that are not a registry's are left alone.

    Args:
        replica: The server.
        wanted: What is to be loaded ahead of requests.
        registered: The registry's adapters; None if nothing is to be unloaded.
        folders: Where the servers find adapters.
        ready: Returns all servers that take requests.
        seconds: How often.

    Attributes:
        probe: Done once the probe that is due at once has ended; done, too, while none is.
    """

    def __init__(
        self,
        replica: Replica,
        *,
        wanted: WantedAdapters,
        registered: RegisteredAdapters | None,
        folders: AdapterFolders,
        ready: Callable[[], Collection[Replica]],
        seconds: float,
    ) -> None:
        self._replica = replica
        self._wanted = wanted
        self._registered = registered
        self._folders = folders
        self._ready = ready
        self._seconds = seconds
        self._due = asyncio.Event()
        self._warned: set[str] = set()
        self._warned_before: set[str] = set()
        self.probe: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Something may be wrong or missing: reconciles now, or once the server's circuit lets it be probed."""
        if self.probe.done() and not self._replica.circuit.closed and not self._replica.circuit.delay:
            self.probe = asyncio.get_running_loop().create_future()
        self._due.set()

    async def _run(self) -> None:
        while True:
            self._due.clear()
            self._warned, self._warned_before = set(), self._warned
            await self._probe()
            if self._replica.takes_requests:
                await self._unload_obsolete()
                with self._errors_as_warnings():
                    await self._load_missing()
            await self._pause()

    async def _probe(self) -> None:
        with self._errors_as_warnings():
            await self._replica.probe()
        if not self.probe.done():
            self.probe.set_result(None)

    async def _unload_obsolete(self) -> None:
        if not self._registered:
            return
        # What is loaded or pinned from here on may have been registered after the names were read.
        loaded, wanted = set(self._replica.adapters.names), self._wanted.names
        with self._errors_as_warnings():
            registered = await self._registered.names()
            for name in wanted - registered.all:
                self._wanted.drop(name)
            for name in loaded & obsolete(self._replica, registered):
                self._replica.adapters.retire(name)

    async def _load_missing(self) -> None:
        for name, adapter in self._wanted.missing(self._replica, self._ready()).items():
            if not self._replica.takes_requests:
                return
            with self._errors_as_warnings(), self._replica.failing_opens_circuit():
                await self._folders.fetch(adapter)
                await self._replica.load(name, adapter, self._folders)

    async def _pause(self) -> None:
        if self._replica.circuit.closed:
            # Not `wait_for`: that of Python 3.11 loses a cancellation which comes together with what it waits for.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await self._due.wait()
        if not self._replica.circuit.closed:
            await asyncio.sleep(self._replica.circuit.delay)

    @contextmanager
    def _errors_as_warnings(self) -> Iterator[None]:
        """Logs what goes wrong, but not again what went wrong the time before."""
        try:
            yield
        except AdapterHubError as error:
            if error.message not in self._warned | self._warned_before:
                _log.warning("%s: %s", self._replica.client.url, error.message)
            self._warned.add(error.message)
        except Exception:  # noqa: BLE001  a defect must not leave the server without a reconciler
            _log.exception("%s could not be reconciled", self._replica.client.url)

    async def aclose(self) -> None:
        """Ends it; who waits for a probe waits no longer."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self.probe.done():
            self.probe.set_result(None)
