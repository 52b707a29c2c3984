"""Keeps garbage collections short while an engine serves.

A full collection looks at every object that Python tracks, and no thread runs meanwhile: 0.3 s in a process that has
imported torch and transformers, seconds on a busy machine, and an event loop waits for as long. `gc.freeze` leaves out
what exists by then. vLLM does the same (`freeze_gc_heap`).
"""

from __future__ import annotations

import gc


class FrozenHeap:
    """Leaves the objects that exist now out of garbage collections, until `release`.

    Those of them that are not needed any more go only then, if they refer to each other; so make one when everything
    is imported and loaded, and before what shall be collected. Where the process has frozen objects already, it takes
    care of its collections itself, and nothing is done.
    """

    def __init__(self) -> None:
        self._is_ours = gc.get_freeze_count() == 0
        if self._is_ours:
            gc.collect()
            gc.freeze()

    def release(self) -> None:
        """Ends it; may be called twice."""
        if self._is_ours:
            self._is_ours = False
            gc.unfreeze()


def freeze_more() -> None:
    """Leaves out what has come to exist since, too, where objects are frozen.

    Call it where what exists by then, such as an engine, is closed and not merely dropped.
    """
    if gc.get_freeze_count():
        gc.collect()
        gc.freeze()
