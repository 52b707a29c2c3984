"""One answer on its way through the engine, and the ticket by which its caller waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adapterhub.engine.interface import LoraRequest, Request, TokenOutput
from adapterhub.engine.kv.cache import KVSlot
from adapterhub.engine.scheduling.row import Row
from adapterhub.errors import EngineError

News = TokenOutput | BaseException


class OutputQueue:
    """What a caller holds: pieces of one answer as they come, or the error that ended it.

    Args:
        wake: Called from any thread when there is news.
        every_piece: Whether each piece is news, or only the end.
    """

    def __init__(self, wake: Callable[[], None], *, every_piece: bool) -> None:
        self.cancelled = False
        self.ended = False
        self._wake = wake
        self._every_piece = every_piece
        self._news: deque[News] = deque()
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether pieces are still to come, and somebody wants them."""
        return not (self.ended or self.cancelled)

    @property
    def has_news(self) -> bool:
        """Whether `take` would return something."""
        return bool(self._news)

    def put(self, news: News) -> None:
        """Adds a piece or an error; what comes after the last piece or an error is dropped."""
        with self._lock:
            if self.ended:
                return
            self.ended = isinstance(news, BaseException) or news.finish_reason is not None
            self._news.append(news)
        if self._every_piece or self.ended:
            self._wake()

    def take(self) -> TokenOutput:
        """The next piece.

        Raises:
            AdapterHubError: The error that ended the answer.
        """
        news = self._news.popleft()
        if isinstance(news, BaseException):
            raise news
        return news

    def take_all(self) -> list[TokenOutput]:
        """Every piece of an answer that has ended; raises as `take`."""
        return [self.take() for _ in range(len(self._news))]


@dataclass(eq=False)
class Job:
    """One answer to be made.

    Attributes:
        request: What was asked.
        row: What the answer has so far.
        ticket: Where its pieces go.
        first: The first of the request's answers, if this is a later one: it starts once that has read the prompt.
    """

    request: Request
    row: Row
    ticket: OutputQueue
    first: Job | None = None
    _held: tuple[KVSlot, int | None] | None = None

    def start(self, lane: KVSlot, slot: int | None) -> None:
        """Gives it its place: a lane for its keys and values, and its adapter's slot, None for the bare base."""
        self._held = (lane, slot)

    @property
    def held(self) -> tuple[KVSlot, int | None]:
        """Its lane and its adapter's slot.

        Raises:
            EngineError: It has not started.
        """
        if self._held is None:
            raise EngineError("The answer has not started.")
        return self._held

    @property
    def adapter(self) -> LoraRequest | None:
        """Whose answer it is."""
        return self.request.adapter

    @property
    def digest(self) -> str:
        """What its keys and values depend on beside its tokens; empty for the bare base."""
        return self.request.adapter.digest if self.request.adapter else ""

    @property
    def priority(self) -> int:
        """Higher starts first."""
        return self.request.priority

    @property
    def tokens(self) -> int:
        """Most tokens that it can have, prompt included."""
        return len(self.row.prompt) + self.row.budget

    @property
    def reading(self) -> bool:
        """Whether some of its prompt has not been computed yet."""
        return self._held is None or self._held[0].length < len(self.row.prompt)

    def next_tokens(self, most: int) -> Sequence[int]:
        """The tokens that its next step computes: the last one drawn, or up to `most` of its prompt."""
        done = self.held[0].length
        return self.row.prompt[done : done + most] if self.reading else self.row.tokens[-1:]
