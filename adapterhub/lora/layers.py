"""A linear layer of the base that adds to its output what each token's adapter changes.

The base layer is kept as it is and its weights are never written.
Invariant: a token without an adapter gets exactly what the base layer returns.
"""

from __future__ import annotations

import torch
from torch import nn

from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.stacked_weights import StackedLoraWeights


class CurrentMapping:
    """The tokens that some layers of a model see in the step that runs now; None while no adapter is in it."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens: LoraMapping | None = None


class LinearWithLora(nn.Module):
    """A base layer and the bank of what the resident adapters change in it."""

    def __init__(self, base: nn.Module, name: str, bank: StackedLoraWeights, step: CurrentMapping) -> None:
        super().__init__()
        self.base = base
        # Not through the module's call: then a layer without an adapter costs what it did before it was wrapped.
        self._forward = base.forward
        self._name = name
        self._bank = bank
        self._step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._forward(x)
        tokens = self._step.tokens
        if tokens is None:
            return y
        return self._bank.apply(self._name, x, y, getattr(self.base, "bias", None), tokens)
