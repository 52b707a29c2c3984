"""Modules of the base that adapters change in other ways than by LoRA on a linear layer: embeddings, heads, norms.

There are few of them in a model, and few adapters change them. So a slot holds weights of its own, which take no memory
for adapters without them, and a step computes them adapter by adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from adapterhub.base.linear_modules import linear_shape
from adapterhub.errors import EngineError
from adapterhub.lora.layers import CurrentMapping, WrappedModule
from adapterhub.lora.module_deltas import EmbeddingDelta, SavedModuleDelta, TokenRowsDelta


class SlotModules:
    """For each slot, what makes an adapter's output of a module from the module's input and output. Not thread-safe.

    Args:
        make: Makes it from an adapter's change of the module.
    """

    version = 0

    def __init__(self, make: Callable[[Any], nn.Module]) -> None:
        self._make = make
        self._modules: dict[int, nn.Module] = {}

    @property
    def bytes(self) -> int:
        """Memory of all slots."""
        modules = list(self._modules.values())
        return sum(parameter.nbytes for module in modules for parameter in module.parameters())

    def load(self, slot: int, deltas: Mapping[str, Any]) -> None:
        """Writes an adapter's change of the one module into a slot."""
        (delta,) = deltas.values()
        self.clear(slot)  # first, so that its memory is free
        self._modules[slot] = self._make(delta)

    def clear(self, slot: int) -> None:
        """Empties a slot; an empty one is not touched."""
        self._modules.pop(slot, None)

    def can_replay(self, slots: Collection[int]) -> bool:
        """Never: Python looks up which tokens an adapter has."""
        return False

    def get(self, slot: int) -> nn.Module | None:
        """What a slot holds; None if its adapter does not change the module."""
        return self._modules.get(slot)


class ModuleWithSlots(WrappedModule):
    """A module that maps each token apart, and a module for each slot that changes its output.

    It takes the place of PEFT's `lora.Embedding`, `ModulesToSaveWrapper` and `TrainableTokensWrapper`.

    Attributes:
        base_forward: What computes the base's output; another may compute it in fewer operations.
    """

    def __init__(
        self, base_layer: nn.Module, name: str, weights: SlotModules, current: CurrentMapping
    ) -> None:
        super().__init__(base_layer, name, weights, current)
        self._weights = weights
        self.base_forward: Callable[[torch.Tensor], torch.Tensor] = base_layer.__call__

    @classmethod
    def new_weights(cls, layer: nn.Module, *, slots: int, dtype: torch.dtype) -> SlotModules:
        """Makes the modules of all slots, none of which is taken yet."""
        return SlotModules(lambda delta: slot_module(layer, delta, dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mapping = self._current.mapping
        if mapping and mapping.only_slot is not None:
            return self._of_one_adapter(x, mapping.only_slot)
        found = [(self._weights.get(slot), run) for slot, *run in mapping.runs] if mapping else []
        changed = [(module, start, stop) for module, (start, stop) in found if module is not None]
        y: torch.Tensor = self.base_forward(x)
        if mapping is None or not changed:
            return y
        first = _tokens_first(x, mapping.end)
        inputs, outputs = first(x), first(y)
        for module, start, stop in changed:
            tokens = slice(mapping.start + start, mapping.start + stop)
            outputs[tokens] = module(inputs[tokens], outputs[tokens])
        return y

    def _of_one_adapter(self, x: torch.Tensor, slot: int) -> torch.Tensor:
        """The output where all tokens have the same adapter: their places do not matter."""
        module = self._weights.get(slot)
        if isinstance(module, _Replacement):  # nobody needs the base's output
            return module.compute(x)
        y: torch.Tensor = self.base_forward(x)
        return y if module is None else module(x, y)


def slot_module(
    base: nn.Module, delta: EmbeddingDelta | SavedModuleDelta | TokenRowsDelta, dtype: torch.dtype
) -> nn.Module:
    """Makes what computes an adapter's output of a module from the module's input and the base's output.

    Args:
        base: The base's module.
        delta: What the adapter changes about it.
        dtype: The dtype of the adapter's weights, where the base's module does not tell.
    """
    match delta:
        case EmbeddingDelta():
            return _LoraOfEmbedding(base, delta, dtype)
        case SavedModuleDelta():
            return _Replacement(base, delta, dtype)
        case TokenRowsDelta() if isinstance(base, nn.Embedding):
            return _EmbeddingRows(base, delta, dtype)
        case TokenRowsDelta():
            return _OutputRows(base, delta, dtype)


class _LoraOfEmbedding(nn.Module):
    def __init__(self, base: nn.Module, delta: EmbeddingDelta, dtype: torch.dtype) -> None:
        super().__init__()
        device = next(base.parameters()).device
        self.a = _parameter(delta.a.T.contiguous(), device, dtype)
        self.b = _parameter(delta.b, device, dtype)
        # Gemma's embeddings scale their output, and PEFT does the same to what it adds.
        self._scale = getattr(base, "embed_scale", 1.0)

    def forward(self, token_ids: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        added = functional.linear(functional.embedding(token_ids, self.a), self.b) * self._scale
        return y + added.to(y.dtype)


class _Replacement(nn.Module):
    def __init__(self, base: nn.Module, delta: SavedModuleDelta, dtype: torch.dtype) -> None:
        super().__init__()
        self._module = _with_parameters(base, delta.parameters, dtype)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self._module.forward(x)  # without the hooks that it shares with the base's
        return output

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.compute(x)


class _EmbeddingRows(nn.Module):
    """The rows are an embedding of their own, made as the base's is, which may scale its output."""

    def __init__(self, base: nn.Module, delta: TokenRowsDelta, dtype: torch.dtype) -> None:
        super().__init__()
        self._embedding = cast(nn.Embedding, _with_parameters(base, {"weight": delta.rows}, dtype))
        self._embedding.padding_idx = None  # it counts other rows
        self.token_ids = _parameter(delta.token_ids, next(base.parameters()).device)

    def forward(self, token_ids: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        at = torch.searchsorted(self.token_ids, token_ids).clamp_(max=len(self.token_ids) - 1)
        replaced = self.token_ids[at] == token_ids
        return torch.where(replaced.unsqueeze(-1), self._embedding.forward(at), y)


class _OutputRows(nn.Module):
    def __init__(self, base: nn.Module, delta: TokenRowsDelta, dtype: torch.dtype) -> None:
        super().__init__()
        device, bias = next(base.parameters()).device, getattr(base, "bias", None)
        self.rows = _parameter(delta.rows, device, dtype)
        self.token_ids = _parameter(delta.token_ids, device)
        self.bias = None if bias is None else _parameter(bias[self.token_ids], device)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y.index_copy(-1, self.token_ids, functional.linear(x, self.rows, self.bias))


def _with_parameters(
    base: nn.Module, parameters: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> nn.Module:
    """A module that computes as the base's does, with parameters of its own; unquantised, where that one is not."""
    device = next(base.parameters()).device
    if all(parameter.is_floating_point() for parameter in base.parameters()):
        module = copy.copy(base)
        module.__dict__.pop("forward", None)  # a hook's, which calls the base's
        dtypes = {name: parameter.dtype for name, parameter in base.named_parameters(recurse=False)}
    else:
        out_features, in_features = linear_shape(base) or (0, 0)
        module = nn.Linear(in_features, out_features, bias="bias" in parameters, device="meta")
        dtypes = {}
    own = {name: _parameter(tensor, device, dtypes.get(name, dtype)) for name, tensor in parameters.items()}
    module._parameters = {**module._parameters, **own}
    return module


def _parameter(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> nn.Parameter:
    """A parameter that is counted as memory of its module, and is not trained."""
    return nn.Parameter(tensor.detach().to(device, dtype), requires_grad=False)


def _tokens_first(x: torch.Tensor, tokens: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """From a module's input or output to a view of it whose first dimension is the tokens of the step.

    The tokens are in one dimension, or in the first two as rows of a batch. Norms of attention heads may get the heads
    before the tokens. Where both have as many elements, the tokens are those whose elements are farther apart in
    memory: a projection's output is laid out token by token.
    """
    dims = x.ndim if not x.is_floating_point() else x.ndim - 1
    if candidates := [dim for dim in range(dims) if x.shape[dim] == tokens]:
        dim = max(candidates, key=x.stride)
        return lambda tensor: tensor.movedim(dim, 0)
    if dims > 1 and x.shape[0] * x.shape[1] == tokens:
        return lambda tensor: tensor.view(tokens, *tensor.shape[2:])
    raise EngineError(
        f"An input of shape {tuple(x.shape)} does not have the {tokens} tokens of the step.",
        hint="Adapters that replace this module cannot be served on this base; merge them.",
    )
