"""Which modules of a base an adapter may replace as a whole, or by LoRA on an embedding.

A slot's own module gets the tokens of its adapter only. So it must map each token apart, from one tensor: linear
layers, embeddings and norms do; convolutions and whole blocks, whose tokens see each other, do not.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

_PARAMETERS = {"weight", "bias"}
_PLAIN = ("torch.nn.", "bitsandbytes.nn.", "adapterhub.base.")


def embedding_shape(module: Any) -> tuple[int, int] | None:
    """(num_embeddings, embedding_dim) of an embedding of token ids; None for any other module."""
    from torch import nn

    if isinstance(module, nn.Embedding) and _maps_one_tensor(module):
        return module.num_embeddings, module.embedding_dim
    return None


def replaceable_parameters(
    module: Any, linear_shape: tuple[int, int] | None
) -> Mapping[str, tuple[int, ...]]:
    """The parameters of a module that maps each token apart, with their unquantised shapes; none for another module.

    Args:
        module: A module of the base.
        linear_shape: (out_features, in_features) if it is a linear layer.
    """
    own = dict(module.named_parameters(recurse=False))
    if not own or not own.keys() <= _PARAMETERS or next(module.children(), None) is not None:
        return {}
    if not _maps_one_tensor(module):
        return {}
    shapes = {name: tuple(parameter.shape) for name, parameter in own.items()}
    if linear_shape and "weight" in shapes:
        # Conv1D stores its weight transposed, and is never quantised.
        transposed = shapes["weight"] == linear_shape[::-1]
        return shapes if transposed else {**shapes, "weight": linear_shape}
    is_norm = all(len(shape) == 1 for shape in shapes.values())
    return shapes if is_norm or embedding_shape(module) else {}


def _maps_one_tensor(module: Any) -> bool:
    from torch import nn

    own_forward = not type(module).__module__.startswith(_PLAIN)
    if isinstance(module, nn.Linear) and own_forward:  # a router, say, that returns several tensors
        return False
    return len(inspect.signature(module.forward).parameters) == 1
