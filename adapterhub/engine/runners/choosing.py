"""Which runner a base gets."""

from __future__ import annotations

import logging

from adapterhub.base.loading import Base
from adapterhub.engine.runner import ScoringRunner
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.engine.runners.row_by_row import RowRunner
from adapterhub.errors import EngineError

_log = logging.getLogger(__name__)


def make_runner(base: Base, *, max_loras: int) -> ScoringRunner:
    """Makes the fastest runner that can compute a base, and claims the base for it.

    Args:
        base: From `load_base`; the runner changes its model and owns it from then on.
        max_loras: Number of LoRA slots.

    Raises:
        EngineError: Another engine owns the base, or no runner can compute its model.
    """
    base.claim()
    try:
        return PackedRunner(base, max_loras=max_loras)
    except Exception as error:  # noqa: BLE001  whatever a model raises that the packed step does not know
        reason = error.message if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
    try:
        runner = RowRunner(base, max_loras=max_loras)
    except EngineError as error:
        raise EngineError(f"{error.message} In packed steps: {reason}", hint=error.hint) from error
    _log.warning(
        "Base %s is served row by row, a forward pass for each sequence: %s (In packed steps: %s)",
        base.name,
        runner.continuation.value,
        reason,
    )
    return runner
