"""The outputs of one request for a task of an event loop, which another thread must never wait for."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, Self, TypeVar

from adapterhub.engine.interface import TokenOutput
from adapterhub.engine.scheduling.loop_events import LoopEvent
from adapterhub.engine.scheduling.output_queue import OutputQueue
from adapterhub.errors import AdapterHubError


class Streamed(Protocol):
    """A sequence whose tokens arrive in its `output`."""

    @property
    def output(self) -> OutputQueue: ...


S = TypeVar("S", bound=Streamed)


class AsyncTokenStream(Generic[S]):
    """See `TokenStream`. A slow reader finds all that has come meanwhile, at most `max_tokens` of each completion.

    Args:
        make_event: Makes an event of the running event loop.
        submit: Checks and queues the request; what it is given is called for each output.
        abort: Ends the sequences that have not finished.
    """

    def __init__(
        self,
        make_event: Callable[[], LoopEvent],
        submit: Callable[[Callable[[], None]], Awaitable[Sequence[S]]],
        abort: Callable[[Sequence[S]], None],
    ) -> None:
        self._make_event, self._submit, self._abort = make_event, submit, abort
        self._event: LoopEvent | None = None
        self._sequences: Sequence[S] = ()
        self._unread: deque[TokenOutput] = deque()
        self._error: AdapterHubError | None = None
        self._closed = False

    async def start(self) -> None:
        """Checks the request and queues it, unless that was done; see `TokenStream.start`."""
        if self._event is None and not self._closed:
            event = self._make_event()
            self._sequences = await self._submit(event.wake)
            self._event = event
            if self._closed:  # meanwhile, by another task
                self._close()

    async def get(self) -> list[TokenOutput]:
        """Waits for outputs and returns all that have come; none at the end. Cancelling it aborts the request."""
        if self._event is None:
            await self.start()
        try:
            while not self._closed and self._event:
                # Before they are read: what finishes meanwhile is found by the next round.
                finished = all(sequence.output.finished for sequence in self._sequences)
                if (outputs := self._read()) or finished:
                    return outputs
                await self._event.wait()
        except BaseException:
            self._close()
            raise
        return []

    def _read(self) -> list[TokenOutput]:
        if self._error:
            raise self._error
        outputs: list[TokenOutput] = []
        try:
            for sequence in self._sequences:
                while sequence.output.has_output:
                    outputs.append(sequence.output.get())
        except AdapterHubError as error:
            if not outputs:
                raise
            self._error = error  # what came before it is returned first
        return outputs

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenOutput:
        if not self._unread:
            self._unread.extend(await self.get())
        if self._closed or not self._unread:
            raise StopAsyncIteration
        return self._unread.popleft()

    async def aclose(self) -> None:
        """Aborts what has not finished."""
        self._close()
        if self._event:
            self._event.wake()

    def _close(self) -> None:
        self._closed = True
        self._abort(self._sequences)

    def __del__(self) -> None:
        self._close()
