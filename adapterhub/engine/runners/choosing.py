"""Which runner a base gets."""

from __future__ import annotations

from adapterhub.base.loading import Base
from adapterhub.engine.runner import Runner
from adapterhub.engine.runners.packed import PackedRunner


def make_runner(base: Base, *, max_loras: int) -> Runner:
    """Makes the runner of a base, and claims the base for it.

    Args:
        base: From `load_base`; the runner changes its model and owns it from then on.
        max_loras: Number of LoRA slots.

    Raises:
        EngineError: Another engine owns the base, or a part of its model is not supported.
    """
    return PackedRunner(base, max_loras=max_loras)
