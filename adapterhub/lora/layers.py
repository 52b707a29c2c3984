"""A linear layer of the base that adds to its output what each token's adapter changes.

The base layer is not modified and its weights are never written. Invariant: a token without an adapter gets exactly
what the base layer returns.
"""

from __future__ import annotations

import torch
from torch import nn

from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.stacked_weights import StackedLoraWeights


class CurrentMapping:
    """The mapping of the forward pass that runs now, shared by layers; None while no token has an adapter."""

    __slots__ = ("mapping",)

    def __init__(self) -> None:
        self.mapping: LoraMapping | None = None


class LinearWithLora(nn.Module):
    """A base layer and the stacked weights of the resident adapters; vLLM's `BaseLinearLayerWithLoRA`.

    Args:
        base_layer: The layer of the base, quantized or not.
        name: Its name within the stacked weights.
        weights: The stacked weights of all layers that share its input.
        current: The mapping of the forward pass that runs now.
    """

    def __init__(
        self, base_layer: nn.Module, name: str, weights: StackedLoraWeights, current: CurrentMapping
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        # Not through `nn.Module.__call__`, so that a layer without an adapter costs what it did before wrapping.
        self._base_forward = base_layer.forward
        self._name = name
        self._weights = weights
        self._current = current

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._base_forward(x)
        mapping = self._current.mapping
        if mapping is None:
            return y
        return self._weights.apply(self._name, x, y, getattr(self.base_layer, "bias", None), mapping)
