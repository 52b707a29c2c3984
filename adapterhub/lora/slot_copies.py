"""When LoRA slots are written: on a GPU beside its steps, elsewhere in order with them.

A GPU copies from pinned host memory with an engine of its own, so an adapter is written on a stream of its own. A step
that uses the adapter waits for the event behind its copies, on the GPU; other steps and the host do not wait. What is
allocated while a slot is written belongs to that stream, and each writing begins behind all steps that were queued
before it: so no step reads memory that was freed and written again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class SlotCopies:
    """The stream on which slots are written, and the events that steps wait for. Not thread-safe.

    Args:
        device: The device of the slots; without a GPU nothing has to be waited for.
        cuda: What has `Stream`, `stream` and `current_stream` as `torch.cuda` has them.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device, self._cuda = device, cuda
        self._stream = cuda.Stream(device) if device.type == "cuda" else None
        # Slot -> the event behind its copies, until a step has waited for it.
        self._written: dict[int, Any] = {}

    @contextmanager
    def writing(self, slot: int) -> Iterator[None]:
        """Operations within the context write a slot: behind all steps so far, and beside those that follow."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(self._cuda.current_stream(self._device))
        try:
            with self._cuda.stream(self._stream):
                yield
        finally:
            self._written[slot] = self._stream.record_event()

    def wait_for(self, slots: Collection[int]) -> None:
        """The operations that follow begin once these slots are written."""
        for slot in self._written.keys() & slots:
            self._cuda.current_stream(self._device).wait_event(self._written.pop(slot))

    def wait_for_all(self) -> None:
        """The operations that follow begin once all slots are written."""
        self.wait_for(list(self._written))
