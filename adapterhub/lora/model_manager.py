"""The adapters that are resident in one model: wraps the layers that they target, and fills and clears their slots.

Which token has which adapter is one shared value, set for one forward pass, so switching moves no weights and an
exception leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from adapterhub.base.quantized_weights import linear_shape
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.layers import CurrentMapping, LinearWithLora
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.stacked_weights import StackedLoraWeights

SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one block that read the same tensor; where they do not after all, nothing is shared."""


class LoraModelManager:
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
        self._step = CurrentMapping()
        self._outputs = CurrentMapping()  # the output layer sees only the tokens whose logits are wanted
        self._banks: dict[str, StackedLoraWeights] = {}
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
    def using(self, tokens: LoraMapping | None, outputs: LoraMapping | None = None) -> Iterator[None]:
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
            self._banks[bank] = StackedLoraWeights(self._slots, in_features, self._dtype, device)
        step = self._outputs if layer is self._model.get_output_embeddings() else self._step
        self._model.set_submodule(name, LinearWithLora(layer, name, self._banks[bank], step))
        self._wrapped.add(name)


def _bank_name(module: str) -> str:
    parent, _, layer = module.rpartition(".")
    return next((f"{parent}.{'+'.join(group)}" for group in SHARED_INPUT if layer in group), module)
