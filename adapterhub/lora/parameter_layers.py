"""Modules of the base whose bare parameters adapters change: a mixture's experts, its router.

An adapter's weights are held as they are, for each slot on their own: those of a mixture are large, and slots of one
rank would waste most of their memory. Experts compute with the factors (`experts.py`). Any other module is called for
the tokens of one adapter after the other, with changed parameters, as PEFT does; that costs a copy of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from adapterhub.base.parameters import has_experts_interface
from adapterhub.lora.experts import RoutedTokens, experts_forward
from adapterhub.lora.layers import CurrentMapping, WrappedModule
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.parameter_delta import ParameterDelta


class ParameterSlots:
    """The changes of one module's parameters by the adapters in slots.

    Attributes:
        loaded: By slot.
    """

    version = 0

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self.loaded: dict[int, ParameterDelta] = {}

    @property
    def bytes(self) -> int:
        """Memory of the changes."""
        return sum(delta.bytes for delta in list(self.loaded.values()))  # a copy: any thread may read it

    def load(self, slot: int, deltas: Mapping[str, ParameterDelta]) -> None:
        """Writes an adapter into a slot, replacing its content."""
        (delta,) = deltas.values()
        self.loaded.pop(slot, None)
        self.loaded[slot] = delta.to(self._dtype).on(self._device)

    def clear(self, slot: int) -> None:
        """Empties a slot."""
        self.loaded.pop(slot, None)

    def can_replay(self, slots: Collection[int]) -> bool:
        """Never: Python looks up which tokens an adapter has."""
        return False


class ParametersWithLora(WrappedModule):
    """A module of the base, each token of which may have a change of its parameters."""

    base_layer: Any

    def __init__(
        self, base_layer: nn.Module, name: str, weights: ParameterSlots, current: CurrentMapping
    ) -> None:
        super().__init__(base_layer, name, weights, current)
        self._weights = weights

    def __getattr__(self, name: str) -> Any:
        """What a model reads of the module, such as the bias of a router's choice."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    @classmethod
    def new_weights(cls, layer: nn.Module, *, slots: int, dtype: torch.dtype) -> ParameterSlots:
        """Makes the weights of a module, without any adapter; they are added to its parameters, in their dtype."""
        parameter = next(layer.parameters())
        return ParameterSlots(parameter.dtype, parameter.device)

    def forward(self, hidden_states: torch.Tensor, *args: Any) -> Any:
        mapping, loaded = self._current.mapping, self._weights.loaded
        if mapping is None or mapping.slots.isdisjoint(loaded):
            return self.base_layer(hidden_states, *args)
        if has_experts_interface(self.base_layer):
            top_k_index, top_k_weights = args
            routed = RoutedTokens(top_k_index, top_k_weights, mapping, self.base_layer.num_experts)
            return experts_forward(self.base_layer, hidden_states, routed, loaded)
        return self._by_adapter(hidden_states, args, mapping)

    def _by_adapter(self, hidden_states: torch.Tensor, args: tuple[Any, ...], mapping: LoraMapping) -> Any:
        """Calls the module for the tokens of each adapter alone.

        The tokens are the last dimension but one of what the module gets and returns, perhaps once for each expert.
        """
        if len(runs := mapping.runs_of(mapping.end)) == 1:
            return functional_call(self.base_layer, self._parameters_of(runs[0][0]), (hidden_states, *args))
        pieces = hidden_states.reshape(-1, mapping.end, hidden_states.shape[-1])
        outputs = []
        for slot, start, stop in runs:
            piece = pieces[:, start:stop]
            further = (arg[start:stop] if arg.ndim == 2 else arg for arg in args)  # a bias is of the experts
            inputs = (piece.flatten(0, 1) if hidden_states.ndim == 2 else piece, *further)
            outputs.append(functional_call(self.base_layer, self._parameters_of(slot), inputs))
        if isinstance(outputs[0], torch.Tensor):
            return _joined(outputs, hidden_states, len(pieces))
        return tuple(_joined(parts, hidden_states, len(pieces)) for parts in zip(*outputs, strict=True))

    def _parameters_of(self, slot: int | None) -> dict[str, torch.Tensor]:
        """The parameters that the adapter in a slot changes, with its change."""
        delta = None if slot is None else self._weights.loaded.get(slot)
        changed = {}
        for name, factors in delta.factors.items() if delta else ():
            parameter = getattr(self.base_layer, name)
            change = factors.dense(transposed=getattr(self.base_layer, "is_transposed", False))
            changed[name] = parameter + change.view_as(parameter).to(parameter.dtype)
        return changed


def _joined(parts: Sequence[torch.Tensor], inputs: torch.Tensor, copies: int) -> torch.Tensor:
    """What a module returned for some tokens after others, as it would have returned it for all."""
    joined = torch.cat([part.reshape(copies, -1, part.shape[-1]) for part in parts], 1)
    return joined.flatten(0, 1) if parts[0].ndim == 2 else joined.view(*inputs.shape[:-1], -1)
