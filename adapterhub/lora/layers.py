"""Adapters over a frozen base: layers that add to the base layer's output what each token's adapter changes.

The base layer is kept as it is and its weights are never written. Which token has which adapter is one shared value,
set for one forward pass, so switching moves no weights and an exception leaves nothing behind.
Invariant: a token without an adapter gets exactly what the base layer returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adapterhub.lora.banks import Bank
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.slots import TokenSlots
from adapterhub.models import linear_shape

SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one block that read the same tensor; where they do not after all, nothing is shared."""


class _Step:
    """The tokens that some layers of a model see in the step that runs now; None while no adapter is in it."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens: TokenSlots | None = None


class AdaptedLinear(nn.Module):
    """A base layer and the bank of what the resident adapters change in it."""

    def __init__(self, base: nn.Module, name: str, bank: Bank, step: _Step) -> None:
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


class AdapterLayers:
    """The resident adapters of one model. Not thread-safe: the engine calls it between its steps.

    Args:
        model: The base; layers that adapters target are wrapped in place when first needed.
        slots: How many adapters can be resident.
        dtype: What they are kept and computed in; the dtype of the base's activations.
    """

    def __init__(self, model: Any, *, slots: int, dtype: torch.dtype) -> None:
        self._model = model
        self._slots = slots
        self._dtype = dtype
        self._step = _Step()
        self._outputs = _Step()  # the output layer sees only the tokens whose logits are wanted
        self._banks: dict[str, Bank] = {}
        self._wrapped: set[str] = set()

    @property
    def slots(self) -> int:
        """How many adapters can be resident."""
        return self._slots

    @property
    def bytes(self) -> int:
        """What the resident adapters take."""
        return sum(bank.bytes for bank in list(self._banks.values()))  # a copy: `stats` may ask at any time

    def load(self, slot: int, deltas: Mapping[str, LoraDelta]) -> None:
        """Puts an adapter into a slot, in place of what it held: module name -> change."""
        banks: dict[str, dict[str, LoraDelta]] = {}
        for name, delta in deltas.items():
            banks.setdefault(_bank_name(name), {})[name] = delta
        for left in self._banks.keys() - banks.keys():
            self._banks[left].clear(slot)
        for bank, changes in banks.items():
            for name in changes:
                self._wrap(name, bank)
            self._banks[bank].load(slot, changes)

    def clear(self, slot: int) -> None:
        """Empties a slot."""
        for bank in self._banks.values():
            bank.clear(slot)

    @contextmanager
    def using(self, tokens: TokenSlots | None, outputs: TokenSlots | None = None) -> Iterator[None]:
        """Applies adapters to the tokens of the forward passes inside.

        Args:
            tokens: Which token has which adapter; None means that all are the bare base's.
            outputs: The same for the tokens that the output layer sees, if those are not all.
        """
        self._step.tokens = tokens if tokens and tokens.runs else None
        self._outputs.tokens = outputs if outputs and outputs.runs else None if outputs else self._step.tokens
        try:
            yield
        finally:
            self._step.tokens = self._outputs.tokens = None

    def _wrap(self, name: str, bank: str) -> None:
        if name in self._wrapped:
            return
        layer = self._model.get_submodule(name)
        if bank not in self._banks:
            _, in_features = linear_shape(layer) or (0, 0)
            device = next(layer.parameters()).device
            self._banks[bank] = Bank(self._slots, in_features, self._dtype, device)
        step = self._outputs if layer is self._model.get_output_embeddings() else self._step
        self._model.set_submodule(name, AdaptedLinear(layer, name, self._banks[bank], step))
        self._wrapped.add(name)


def _bank_name(module: str) -> str:
    parent, _, layer = module.rpartition(".")
    return next((f"{parent}.{'+'.join(group)}" for group in SHARED_INPUT if layer in group), module)
