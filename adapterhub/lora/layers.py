"""Modules of the base that apply what each token's adapter changes about them.

The base's module is not modified and its weights are never written. Invariant: a token without an adapter gets exactly
what the base's module returns. Adapters in different slots may change one module in different ways; it is then wrapped
once for each way, and each wrapper leaves the tokens of the other ones alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from adapterhub.base.linear_modules import linear_shape
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.stacked_weights import StackedLoraWeights

SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one block that usually have the same input tensor; where they do not, nothing is shared."""


class SlotWeights(Protocol):
    """What the adapters in slots change about one module, or about modules that share a computation.

    Attributes:
        bytes: Its memory; any thread may read it.
        version: Another number whenever tensors that a step reads may have moved.
    """

    version: int

    @property
    def bytes(self) -> int: ...

    def load(self, slot: int, deltas: Mapping[str, Any]) -> None:
        """Writes an adapter into a slot, replacing its content: module name -> change."""
        ...

    def can_replay(self, slots: Collection[int]) -> bool:
        """Whether a step of adapters in these slots, by a `StaticLoraMapping`, can be captured in a graph."""
        ...

    def clear(self, slot: int) -> None:
        """Empties a slot; an empty one is not touched."""
        ...


class CurrentMapping:
    """The mapping of the forward pass that runs now, shared by layers; None while no token has an adapter."""

    __slots__ = ("mapping",)

    def __init__(self) -> None:
        self.mapping: LoraMapping | None = None


class WrappedModule(nn.Module, ABC):
    """A module of the base with what adapters change about it; vLLM's `BaseLayerWithLoRA`.

    Args:
        base_layer: The module that it takes the place of: the base's, or a wrapper of another kind.
        name: Its name in the model.
        weights: From `new_weights`; that of all modules of its group.
        current: The mapping of the forward pass that runs now.
    """

    def __init__(
        self, base_layer: nn.Module, name: str, weights: SlotWeights, current: CurrentMapping
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._name, self._current = name, current

    @property
    def weight(self) -> Any:
        """The weight of the base's module, which some models read; an adapter's change is not in it, as in PEFT."""
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the base's module."""
        return getattr(self.base_layer, "bias", None)

    @classmethod
    def group(cls, name: str) -> str:
        """The group of a module; modules of one group have their weights in common."""
        return name

    @classmethod
    @abstractmethod
    def new_weights(cls, layer: nn.Module, *, slots: int, dtype: torch.dtype) -> SlotWeights:
        """Makes the weights of a group, without any adapter.

        Args:
            layer: The base's module, or one of the group.
            slots: Maximum number of resident adapters.
            dtype: The dtype of their weights.
        """


def base_layer_of(module: nn.Module) -> nn.Module:
    """The base's own module, within any wrappers."""
    while isinstance(module, WrappedModule):
        module = module.base_layer
    return module


class LinearWithLora(WrappedModule):
    """A linear layer, quantized or not, and the stacked weights of the resident adapters."""

    def __init__(
        self, base_layer: nn.Module, name: str, weights: StackedLoraWeights, current: CurrentMapping
    ) -> None:
        super().__init__(base_layer, name, weights, current)
        # Not through `nn.Module.__call__`, so that a layer without an adapter costs what it did before wrapping.
        self._base_forward = base_layer.forward
        self._weights = weights
        self._has_bias = self.bias is not None

    @classmethod
    def group(cls, name: str) -> str:
        """The layers that share an input."""
        parent, _, layer = name.rpartition(".")
        return next((f"{parent}.{'+'.join(group)}" for group in SHARED_INPUT if layer in group), name)

    @classmethod
    def new_weights(cls, layer: nn.Module, *, slots: int, dtype: torch.dtype) -> StackedLoraWeights:
        """Makes the stacked weights of the layers that share an input."""
        _, in_features = linear_shape(layer) or (0, 0)
        weight = next(layer.parameters())
        # Some models keep a router in float32 and give it such inputs.
        dtype = torch.float32 if weight.dtype == torch.float32 else dtype
        return StackedLoraWeights(slots, in_features, dtype, weight.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._base_forward(x)
        mapping = self._current.mapping
        if mapping is None:
            return y
        bias = self.bias if self._has_bias else None  # modules are slow to find what they do not have
        return self._weights.apply(self._name, x, y, bias, mapping)
