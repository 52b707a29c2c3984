"""Adapters over a frozen base: layers that add the selected adapter's change to the base layer's output.

The base layer is kept as it is and its weights are never written. A layer holds every loaded adapter's matrices by
key; which one applies is one shared value, so switching moves no weights and costs the same for any model.
Invariant: with no adapter selected, a wrapped layer returns exactly what the base layer returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class LoraDelta:
    """What one adapter changes in one layer.

    Attributes:
        a: The down-projection, shape (r, in_features).
        b: The up-projection times the scaling, shape (out_features, r).
        column_scale: DoRA's magnitude over the norm of the adapted weight, shape (out_features,), or None.
    """

    a: torch.Tensor
    b: torch.Tensor
    column_scale: torch.Tensor | None = None

    def apply(self, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The adapted output, given the layer's input `x` (..., in_features), its output `y` and its bias.

        DoRA (arXiv 2402.09353) scales the adapted weight's rows, and so the output without its bias.
        """
        change = (x.to(self.a.dtype) @ self.a.T @ self.b.T).to(y.dtype)
        if self.column_scale is None:
            return y + change
        unbiased = y if bias is None else y - bias
        scaled = (unbiased + change) * self.column_scale.to(y.dtype)
        return scaled if bias is None else scaled + bias


class Selection:
    """Which adapter applies now; one instance is shared by all layers of a model."""

    __slots__ = ("key",)

    def __init__(self) -> None:
        self.key: str | None = None


class AdaptedLinear(nn.Module):
    """A base layer and the changes that the loaded adapters make to it."""

    def __init__(self, base: nn.Module, selection: Selection) -> None:
        super().__init__()
        self.base = base
        self.deltas: dict[str, LoraDelta] = {}
        self._selection = selection

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base(x)
        key = self._selection.key
        delta = self.deltas.get(key) if key is not None else None
        return y if delta is None else delta.apply(x, y, getattr(self.base, "bias", None))


class AdapterLayers:
    """The adapters loaded over one model. Not thread-safe: the engine calls it under its lock.

    Args:
        model: The base; the layers that adapters target are wrapped in place when first needed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._selection = Selection()
        self._wrapped: dict[str, AdaptedLinear] = {}

    def add(self, key: str, deltas: Mapping[str, LoraDelta]) -> None:
        """Loads an adapter under a key: module name -> change."""
        for name, delta in deltas.items():
            self._layer(name).deltas[key] = delta

    def remove(self, key: str) -> None:
        """Forgets an adapter; unknown keys are ignored."""
        for layer in self._wrapped.values():
            layer.deltas.pop(key, None)

    @contextmanager
    def using(self, key: str | None) -> Iterator[None]:
        """Applies one adapter (None: the bare base) to the forward passes inside."""
        self._selection.key = key
        try:
            yield
        finally:
            self._selection.key = None

    def _layer(self, name: str) -> AdaptedLinear:
        if name not in self._wrapped:
            layer = AdaptedLinear(self._model.get_submodule(name), self._selection)
            self._model.set_submodule(name, layer)
            self._wrapped[name] = layer
        return self._wrapped[name]
