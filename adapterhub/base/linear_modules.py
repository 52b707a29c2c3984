"""Which modules of a model are linear layers, quantised or not."""

from __future__ import annotations

from typing import Any


def linear_shape(module: Any) -> tuple[int, int] | None:
    """(out_features, in_features) of a linear layer; None for any other module."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return module.nf, module.nx
    if isinstance(module, nn.Linear) and not _is_router(module):  # bitsandbytes' layers are subclasses
        return module.out_features, module.in_features
    return None


def _is_router(module: Any) -> bool:
    """Whether a subclass of `nn.Linear` returns its choice of experts too; Falcon's, which is none, only rounds."""
    kind = type(module)
    return "forward" in vars(kind) and kind.__name__.endswith("Router")
