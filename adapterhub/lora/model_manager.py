"""Manages the adapters that are resident in one model: wraps the modules that they change, fills and clears slots.

The mapping from tokens to adapters is one shared value, set for one forward pass. So switching adapters moves no
weights, and an exception leaves no state behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from adapterhub.lora.delta import LoraDelta, ModuleDelta
from adapterhub.lora.layers import CurrentMapping, LinearWithLora, SlotWeights, WrappedModule, base_layer_of
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.module_deltas import EmbeddingDelta, SavedModuleDelta, TokenRowsDelta
from adapterhub.lora.module_layers import ModuleWithSlots
from adapterhub.lora.parameter_delta import ParameterDelta
from adapterhub.lora.parameter_layers import ParametersWithLora
from adapterhub.lora.slot_copies import SlotCopies

_WRAPPERS: Mapping[type, type[WrappedModule]] = {
    LoraDelta: LinearWithLora,
    EmbeddingDelta: ModuleWithSlots,
    SavedModuleDelta: ModuleWithSlots,
    TokenRowsDelta: ModuleWithSlots,
    ParameterDelta: ParametersWithLora,
}
"""The kind of a change -> what applies it."""


class LoraModelManager:
    """The resident adapters of one model; vLLM's `LoRAModelManager`.

    Not thread-safe: the engine calls it between its steps. Only `bytes` may be read at any time.

    Args:
        model: The base; modules that adapters change are wrapped in place when first needed.
        slots: Maximum number of resident adapters.
        dtype: The dtype of the adapters' weights and of their products; that of the base's activations.
        copies: Writes slots beside the steps of a GPU; in order with them if not given.

    Attributes:
        version: Changes whenever modules of the model are replaced: when one is wrapped, and when all are unwrapped.
    """

    def __init__(
        self, model: Any, *, slots: int, dtype: torch.dtype, copies: SlotCopies | None = None
    ) -> None:
        self._model = model
        self._copies = copies or SlotCopies(torch.device("cpu"))
        self._slots = slots
        self._dtype = dtype
        self._current = CurrentMapping()
        # What follows the backbone gets only the tokens whose logits are needed.
        self._current_outputs = CurrentMapping()
        # By kind, and by the group of modules that hold their weights together.
        self._weights: dict[tuple[type[WrappedModule], str], SlotWeights] = {}
        self._wrapped: set[tuple[type[WrappedModule], str]] = set()
        self.version = 0

    @property
    def slots(self) -> int:
        """Maximum number of resident adapters."""
        return self._slots

    @property
    def bytes(self) -> int:
        """Memory of the adapters in slots."""
        return sum(weights.bytes for weights in list(self._weights.values()))  # a copy: see the class

    @property
    def addresses(self) -> tuple[int, int]:
        """Another value whenever modules have been replaced, or the tensors of adapters may have moved."""
        return self.version, sum(weights.version for weights in self._weights.values())

    def can_replay(self, slots: Collection[int]) -> bool:
        """Whether a step of adapters in these slots can be captured in a graph; see `StaticLoraMapping`."""
        return not slots or all(weights.can_replay(slots) for weights in self._weights.values())

    def load(self, slot: int, deltas: Mapping[str, ModuleDelta]) -> None:
        """Writes an adapter into a slot, replacing its content.

        Args:
            slot: The slot.
            deltas: Module name -> the adapter's change of that module.
        """
        before = self.addresses
        try:
            with self._copies.writing(slot):
                self._load(slot, deltas)
        finally:
            if self.addresses != before:  # with new stacks, all slots have been written
                self._copies.wait_for_all()

    def wait_for(self, slots: Collection[int]) -> None:
        """The operations that follow begin once these slots are written; `using` sees to it by itself."""
        self._copies.wait_for(slots)

    def _load(self, slot: int, deltas: Mapping[str, ModuleDelta]) -> None:
        groups: dict[tuple[type[WrappedModule], str], dict[str, ModuleDelta]] = {}
        for name, delta in deltas.items():
            kind = _WRAPPERS[type(delta)]
            groups.setdefault((kind, kind.group(name)), {})[name] = delta
        for unused in self._weights.keys() - groups.keys():
            self._weights[unused].clear(slot)
        for (kind, group), changes in groups.items():
            for name in changes:
                self._wrap(name, kind, group)
            self._weights[kind, group].load(slot, changes)

    def clear(self, slot: int) -> None:
        """Empties a slot."""
        with self._copies.writing(slot):
            for weights in self._weights.values():
                weights.clear(slot)

    def unwrap(self) -> None:
        """Removes all adapters and their memory, and gives the model its own modules back."""
        for _, name in self._wrapped:
            self._model.set_submodule(name, base_layer_of(self._model.get_submodule(name)))
        self._wrapped.clear()
        self._weights.clear()
        self.version += 1

    @contextmanager
    def using(self, mapping: LoraMapping | None, outputs: LoraMapping | None = None) -> Iterator[None]:
        """Applies adapters to the tokens of the forward passes within the context; contexts may nest.

        Args:
            mapping: The adapters of the tokens; None means that all tokens are the bare base's.
            outputs: The adapters of the tokens that the output layer gets, if those are not all.
        """
        if mapping and mapping.slots:
            self._copies.wait_for(mapping.slots)
        before = self._current.mapping, self._current_outputs.mapping
        self._current.mapping = mapping if mapping and mapping.has_adapters else None
        if outputs:
            self._current_outputs.mapping = outputs if outputs.has_adapters else None
        else:
            self._current_outputs.mapping = self._current.mapping
        try:
            yield
        finally:
            self._current.mapping, self._current_outputs.mapping = before

    def _wrap(self, name: str, kind: type[WrappedModule], group: str) -> None:
        if (kind, name) in self._wrapped:
            return
        layer = self._model.get_submodule(name)
        if (kind, group) not in self._weights:
            weights = kind.new_weights(base_layer_of(layer), slots=self._slots, dtype=self._dtype)
            self._weights[kind, group] = weights
        current = self._current_outputs if self._is_output(name, layer) else self._current
        self._model.set_submodule(name, kind(layer, name, self._weights[kind, group], current))
        self._wrapped.add((kind, name))
        self.version += 1

    def _is_output(self, name: str, layer: Any) -> bool:
        """Whether a layer is the output layer, or one before it that stands behind the backbone too."""
        backbone = self._model.base_model_prefix
        behind = hasattr(self._model, backbone) and not name.startswith(f"{backbone}.")
        return behind or base_layer_of(layer) is base_layer_of(self._model.get_output_embeddings())
