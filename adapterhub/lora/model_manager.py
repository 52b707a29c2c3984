"""Manages the adapters that are resident in one model: wraps the layers that they target, fills and clears slots.

The mapping from tokens to adapters is one shared value, set for one forward pass. So switching adapters moves no
weights, and an exception leaves no state behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from adapterhub.base.linear_layers import linear_shape
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.layers import CurrentMapping, LinearWithLora
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.stacked_weights import StackedLoraWeights

SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one block that usually have the same input tensor; where they do not, nothing is shared."""


class LoraModelManager:
    """The resident adapters of one model; vLLM's `LoRAModelManager`.

    Not thread-safe: the engine calls it between its steps. Only `bytes` may be read at any time.

    Args:
        model: The base; layers that adapters target are wrapped in place when first needed.
        slots: Maximum number of resident adapters.
        dtype: The dtype of the stacked weights and of their products; that of the base's activations.
    """

    def __init__(self, model: Any, *, slots: int, dtype: torch.dtype) -> None:
        self._model = model
        self._slots = slots
        self._dtype = dtype
        self._current = CurrentMapping()
        # The output layer gets only the tokens whose logits are needed.
        self._current_outputs = CurrentMapping()
        self._stacked: dict[str, StackedLoraWeights] = {}  # by the group of layers that share an input
        self._wrapped: set[str] = set()

    @property
    def slots(self) -> int:
        """Maximum number of resident adapters."""
        return self._slots

    @property
    def bytes(self) -> int:
        """Memory of the stacked weights."""
        return sum(stacked.bytes for stacked in list(self._stacked.values()))  # a copy: see the class

    def load(self, slot: int, deltas: Mapping[str, LoraDelta]) -> None:
        """Writes an adapter into a slot, replacing its content.

        Args:
            slot: The slot.
            deltas: Module name -> the adapter's change of that layer.
        """
        groups: dict[str, dict[str, LoraDelta]] = {}
        for name, delta in deltas.items():
            groups.setdefault(_group_name(name), {})[name] = delta
        for unused in self._stacked.keys() - groups.keys():
            self._stacked[unused].clear(slot)
        for group, group_deltas in groups.items():
            for name in group_deltas:
                self._wrap(name, group)
            self._stacked[group].load(slot, group_deltas)

    def clear(self, slot: int) -> None:
        """Empties a slot."""
        for stacked in self._stacked.values():
            stacked.clear(slot)

    @contextmanager
    def using(self, mapping: LoraMapping | None, outputs: LoraMapping | None = None) -> Iterator[None]:
        """Applies adapters to the tokens of the forward passes within the context.

        Args:
            mapping: The adapters of the tokens; None means that all tokens are the bare base's.
            outputs: The adapters of the tokens that the output layer gets, if those are not all.
        """
        self._current.mapping = mapping if mapping and mapping.runs else None
        if outputs:
            self._current_outputs.mapping = outputs if outputs.runs else None
        else:
            self._current_outputs.mapping = self._current.mapping
        try:
            yield
        finally:
            self._current.mapping = self._current_outputs.mapping = None

    def _wrap(self, name: str, group: str) -> None:
        if name in self._wrapped:
            return
        layer = self._model.get_submodule(name)
        if group not in self._stacked:
            _, in_features = linear_shape(layer) or (0, 0)
            device = next(layer.parameters()).device
            self._stacked[group] = StackedLoraWeights(self._slots, in_features, self._dtype, device)
        is_output = layer is self._model.get_output_embeddings()
        current = self._current_outputs if is_output else self._current
        self._model.set_submodule(name, LinearWithLora(layer, name, self._stacked[group], current))
        self._wrapped.add(name)


def _group_name(module: str) -> str:
    parent, _, layer = module.rpartition(".")
    return next((f"{parent}.{'+'.join(group)}" for group in SHARED_INPUT if layer in group), module)
