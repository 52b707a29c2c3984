"""The output of one sequence on its way from the thread that steps to the thread or task that waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from adapterhub.engine.interface import TokenOutput

Output = TokenOutput | BaseException


class OutputQueue:
    """Token outputs of one sequence, or the error that ended it.

    The thread that steps calls `put`. One consumer calls `get` and `get_all`, and sets `aborted`. Any thread may read
    the properties.

    Args:
        wake: Called by `put` when the consumer has something to do.
        every_token: Whether to call it for each token, or only when the sequence has finished.

    Attributes:
        aborted: Whether the consumer wants no further output.
        finished: Whether the last output or an error has been put.
    """

    def __init__(self, wake: Callable[[], None], *, every_token: bool) -> None:
        self.aborted = False
        self.finished = False
        self._wake = wake
        self._every_token = every_token
        self._outputs: deque[Output] = deque()

    @property
    def is_open(self) -> bool:
        """Whether further outputs will come and are wanted."""
        return not (self.finished or self.aborted)

    @property
    def has_output(self) -> bool:
        """Whether `get` has something to return or raise."""
        return bool(self._outputs)

    def put(self, output: Output) -> None:
        """Adds an output or an error; ignored once the sequence has finished."""
        if self.finished:
            return
        # In this order: a consumer that sees `finished` takes all outputs, and must find the last one among them.
        self._outputs.append(output)
        self.finished = isinstance(output, BaseException) or output.finish_reason is not None
        if self._every_token or self.finished:
            self._wake()

    def get(self) -> TokenOutput:
        """The next output.

        Raises:
            AdapterHubError: The error that ended the sequence.
        """
        output = self._outputs.popleft()
        if isinstance(output, BaseException):
            raise output
        return output

    def get_all(self) -> list[TokenOutput]:
        """All outputs of a sequence that has finished; raises as `get`."""
        return [self.get() for _ in range(len(self._outputs))]
