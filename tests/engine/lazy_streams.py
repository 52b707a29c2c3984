"""What stands for the streams of `torch.cuda` on a CPU: work on a side stream is done when somebody waits for it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WRITES = ("aten::copy_", "aten::zero_", "aten::fill_")


class LazyStream(TorchDispatchMode):
    """A stream whose writes wait until an event behind them is waited for; as a context, the current stream."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[Any, Any, Any]] = []
        self.begun_behind: list[object] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation.name().split(".")[0] not in _WRITES:
            return operation(*args, **(kwargs or {}))
        self.writes.append((operation, args, kwargs or {}))
        return args[0]

    def wait_stream(self, stream: object) -> None:
        """As `torch.cuda.Stream.wait_stream`; the main stream of a CPU has nothing that is not done."""
        self.begun_behind.append(stream)

    def record_event(self) -> tuple[LazyStream, int]:
        """The place behind the writes so far."""
        return self, len(self.writes)


class MainStream:
    """The stream of the steps; waiting for an event does the writes before it."""

    def __init__(self) -> None:
        self.waits = 0

    def wait_event(self, event: tuple[LazyStream, int]) -> None:
        """As `torch.cuda.Stream.wait_event`."""
        stream, end = event
        self.waits += 1
        for place in range(end):
            operation, args, kwargs = stream.writes[place]
            operation(*args, **kwargs)
            stream.writes[place] = (lambda *_, **__: None, (), {})


class LazyStreams:
    """A `torch.cuda` with one side stream and one main stream."""

    def __init__(self) -> None:
        self.side, self.main = LazyStream(), MainStream()

    def Stream(self, device: torch.device) -> LazyStream:
        """The side stream."""
        return self.side

    def stream(self, stream: LazyStream) -> LazyStream:
        """The context in which a stream is the current one."""
        return stream

    def current_stream(self, device: torch.device) -> MainStream:
        """The main stream."""
        return self.main
