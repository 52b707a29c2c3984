"""Bare parameters of a base that adapters can change: the fused experts of mixtures, and their routers.

transformers keeps all experts of a layer in one parameter of three dimensions, which PEFT adapts with
`target_parameters`. Orientation is PEFT's (`peft/tuners/lora/layer.py`, `ParamWrapper`): lora_A is applied to the last
dimension, but to the last but one where a module says that its parameters are transposed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from adapterhub.base.linear_modules import linear_shape

if TYPE_CHECKING:
    from torch import nn

_KEY = re.compile(r"(.+)\[(\d+)\.(\d+)/(\d+)\]")
_BEFORE_GATE = ("gate_up_proj", "up_proj")


class ParameterShape(NamedTuple):
    """The shape of LoRA on a parameter.

    Attributes:
        experts: How many matrices it holds.
        out_features: The number of rows of lora_B.
        in_features: The number of columns of lora_A.
        transposed: Whether each matrix is stored as (in_features, out_features).
        served: Whether an engine can apply changes of it; else it is here since PEFT counts it.
    """

    experts: int
    out_features: int
    in_features: int
    transposed: bool
    served: bool


class ExpertPiece(NamedTuple):
    """Which part of a mixture's parameter a tensor in the base's files is, or a module of an adapter for one expert.

    Attributes:
        parameter: The parameter, by its name in the model.
        expert: The expert whose matrix, or part of a matrix, it is.
        part: Which of the equal parts of that matrix's rows it is, from 0.
        parts: How many parts there are: 2 where gate and up are stored apart.
    """

    parameter: str
    expert: int
    part: int
    parts: int

    @property
    def key(self) -> str:
        """A name of it."""
        return f"{self.parameter}[{self.expert}.{self.part}/{self.parts}]"

    @classmethod
    def of_key(cls, name: str) -> Self | None:
        """The part of this name; None for any other name."""
        match = _KEY.fullmatch(name)
        return cls(match[1], *map(int, match.groups()[1:])) if match else None


def parameter_shapes(model: Any) -> dict[str, ParameterShape]:
    """The parameters with two or three dimensions of modules that are no linear layers, in the order of the modules.

    Args:
        model: A transformers model, which may be on the meta device.

    Returns:
        Parameter -> shape.
    """
    served = set(_served_modules(model))
    return {
        f"{name}.{leaf}": _shape(parameter, module, name in served)
        for name, module in model.named_modules()
        if name and linear_shape(module) is None
        for leaf, parameter in module.named_parameters(recurse=False)
        if parameter.ndim in (2, 3)
    }


def has_experts_interface(module: nn.Module) -> bool:
    """Whether a module is a mixture's experts under transformers' `ExpertsInterface`, which fixes what they compute."""
    first = next((name for name in _BEFORE_GATE if hasattr(module, name)), None)
    settings = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "down_proj")
    return first is not None and all(hasattr(module, name) for name in settings)


def _shape(parameter: Any, module: nn.Module, served: bool) -> ParameterShape:
    if parameter.ndim == 2:
        out_features, in_features = parameter.shape
        return ParameterShape(1, out_features, in_features, False, served)
    experts, first, second = parameter.shape
    if getattr(module, "is_transposed", False):
        return ParameterShape(experts, second, first, True, served)
    return ParameterShape(experts, first, second, False, served)


def _served_modules(model: Any) -> Iterator[str]:
    """Experts, and routers beside them: modules that have a row of weights for each expert."""
    for name, module in model.named_modules():
        children = dict(module.named_children())
        for child, experts in children.items():
            if not (sizes := _sizes_of_experts(experts)):
                continue
            if has_experts_interface(experts) or _maps_tokens(experts):
                yield _join(name, child)
            yield from (_join(name, other) for other, router in children.items() if _is_router(router, sizes))


def _sizes_of_experts(module: nn.Module) -> set[int]:
    fused = (one for _, one in module.named_parameters(recurse=False) if one.ndim == 3)
    return {len(one) for one in fused}


def _is_router(module: nn.Module, sizes: set[int]) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2 and len(weight) in sizes and _maps_tokens(module)


def _maps_tokens(module: nn.Module) -> bool:
    """Whether a module maps each token alone: from its features and its experts, or with a bias of the experts."""
    own = not type(module).__module__.startswith("torch.")  # a convolution mixes tokens
    _, *further = inspect.signature(module.forward).parameters
    return own and all(name.startswith("top_k_") or name.endswith("bias") for name in further)


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child
