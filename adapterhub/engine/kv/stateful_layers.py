"""Finds the layers of a model that keep a state of fixed size for each sequence, by watching one forward pass.

transformers' cache tells which states there are (`LinearAttentionLayer`), and the innermost module that is given the
cache and fills one is the module to wrap. No name of a model or of a layer is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from adapterhub.engine.kv.shape import StateShape
from adapterhub.errors import EngineError

_PROBE_TOKENS = 6  # more than the inputs that most convolutions keep, and enough for two chunks

_StateKey = tuple[int, str, int]  # layer, kind, index


@dataclass(frozen=True)
class StatefulLayer:
    """A module that keeps states between the tokens of a sequence.

    Attributes:
        module: The module, which transformers calls with a cache.
        parameters: The names of its arguments that may be passed without a name.
        cache_argument: The name of the argument that the cache is passed in.
        states: Index among the states of the base -> the state; those that this module reads and writes.
        continues_chunks: Whether it can continue a sequence by several tokens at once. Mamba 1 in transformers cannot:
            it starts such tokens from an empty state.
    """

    module: torch.nn.Module
    parameters: tuple[str, ...]
    cache_argument: str
    states: Mapping[int, StateShape]
    continues_chunks: bool = True

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, without the cache."""
        named = dict(zip(self.parameters, args, strict=False)) | dict(kwargs)
        named.pop(self.cache_argument, None)
        return named

    def make_cache(self, states: Mapping[int, torch.Tensor] | None = None) -> Cache:
        """A cache of transformers with the states of some sequences; empty without them.

        Args:
            states: Index -> the state of all sequences, shape (sequences, *state); the module may change it in place.
        """
        layer_index = next(iter(self.states.values())).layer
        layer = LinearAttentionLayer(number_of_states=1 + max(one.index for one in self.states.values()))
        for index, tensor in (states or {}).items():
            shape = self.states[index]
            if shape.kind == "conv":
                layer.conv_states[shape.index] = tensor
                layer.conv_kernel_size[shape.index] = tensor.shape[-1]
                layer.is_conv_states_initialized[shape.index] = True
                layer.has_previous_state[shape.index] = True
            else:
                layer.recurrent_states[shape.index] = tensor
                layer.is_recurrent_states_initialized[shape.index] = True
        return Cache(layers=[*[DummyLayer()] * layer_index, layer])

    def states_of(self, cache: Cache) -> dict[int, torch.Tensor]:
        """The states in a cache of `make_cache`, after the module was called with it."""
        return {index: _states(cache)[one.layer, one.kind, one.index] for index, one in self.states.items()}


@dataclass
class _Call:
    """What the probing pass called a module with."""

    module: torch.nn.Module
    cache_argument: str
    arguments: dict[str, Any]
    keys: list[_StateKey] = field(default_factory=list)


def find_stateful_layers(
    model: Any, device: torch.device
) -> tuple[list[StatefulLayer], tuple[StateShape, ...]]:
    """Finds the stateful layers of a model whose attention is still its own; runs a short forward pass if it has some.

    Args:
        model: A transformers model.
        device: The device of its inputs.

    Returns:
        The layers, and all their states; both empty for a model of attention alone.

    Raises:
        EngineError: It keeps states in a way that is not known.
    """
    stateful = {
        index
        for index, one in enumerate(_cache_layers(model))
        if isinstance(one, LinearAttentionCacheLayerMixin)
    }
    if not stateful:
        return [], ()
    calls, cache = _probe(model, device)
    if stateful != {layer for layer, _, _ in _states(cache)}:
        raise EngineError(
            f"A {type(model).__name__} cannot be served in a packed batch: its layers keep states in a way of its own."
        )
    shapes = [
        StateShape(layer, kind, index, tuple(tensor.shape[1:]), tensor.dtype)  # type: ignore[arg-type]
        for (layer, kind, index), tensor in _states(cache).items()
    ]
    layers = []
    continues: dict[type, bool] = {}
    for call in _outermost(calls):
        states = {index: one for index, one in enumerate(shapes) if _key(one) in call.keys}
        if len({one.layer for one in states.values()}) > 1:
            raise EngineError(
                f"A {type(model).__name__} cannot be served in a packed batch: its layers share states."
            )
        layer = StatefulLayer(call.module, _parameters(call.module), call.cache_argument, states)
        kind = type(call.module)
        if kind not in continues:
            continues[kind] = _continues_chunks(layer, call)
        layers.append(replace(layer, continues_chunks=continues[kind]))
    return layers, tuple(shapes)


def _outermost(calls: Iterable[_Call]) -> list[_Call]:
    """The calls of modules that are not within another one's, with the states of those that are within."""
    kept: list[_Call] = []
    for call in sorted(calls, key=lambda one: -sum(1 for _ in one.module.modules())):
        outer = next((one for one in kept if call.module in set(one.module.modules())), None)
        if outer:
            outer.keys += call.keys
        else:
            kept.append(call)
    return kept


def _key(shape: StateShape) -> _StateKey:
    return shape.layer, shape.kind, shape.index


def num_attention_layers(model: Any) -> int:
    """The layers of a model that keep keys and values of their own, by the cache that transformers makes for it."""
    return sum(isinstance(layer, CacheLayerMixin) for layer in _cache_layers(model))


def _cache_layers(model: Any) -> list[Any]:
    try:
        return list(DynamicCache(config=model.config).layers)
    except (AttributeError, KeyError, ValueError):  # it has layers that only a cache of its own knows
        return [DynamicLayer()] * model.config.get_text_config().num_hidden_layers


@torch.inference_mode()
def _probe(model: Any, device: torch.device) -> tuple[list[_Call], Cache]:
    """The calls of the innermost modules that filled states, in order, and the cache."""
    owners: dict[_StateKey, _Call] = {}
    before: list[set[_StateKey]] = []
    caches: list[Cache] = []

    def enter(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if (cache := _cache_in([*args, *kwargs.values()])) is not None:  # an empty one is false
            before.append(set(_states(cache)))

    def leave(module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if (cache := _cache_in([*args, *kwargs.values()])) is not None:  # an empty one is false
            caches[:] = [cache]
            new = _states(cache).keys() - before.pop()
            named = dict(zip(_parameters(module), args, strict=False)) | kwargs
            call = _Call(module, next(name for name in named if named[name] is cache), named)
            for key in new - owners.keys():  # an inner module ends first
                owners[key] = call
                call.keys.append(key)

    hooks = []
    try:
        for module in model.modules():
            hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.append(module.register_forward_hook(leave, with_kwargs=True))
        tokens = torch.arange(_PROBE_TOKENS, device=device)[None]
        model(input_ids=tokens, use_cache=True)
    finally:
        for hook in hooks:
            hook.remove()
    if not caches:
        raise EngineError(
            f"A {type(model).__name__} cannot be served in a packed batch: its layers are not given its cache."
        )
    return list({id(call): call for call in owners.values()}.values()), caches[0]


@torch.inference_mode()
def _continues_chunks(layer: StatefulLayer, call: _Call) -> bool:
    """Whether the output of further tokens depends on each state that the tokens before them left."""
    tokens = _PROBE_TOKENS // 2

    def run(chunk: slice, cache: Cache) -> tuple[torch.Tensor, ...]:
        arguments = {name: _chunk_of(value, chunk) for name, value in call.arguments.items()}
        output = layer.module(**{**arguments, layer.cache_argument: cache})
        return output if isinstance(output, tuple) else (output,)

    first = layer.make_cache()
    run(slice(tokens), first)
    states = layer.states_of(first)

    def differs(changed: int) -> bool:
        copies = {index: state + 1 if index == changed else state.clone() for index, state in states.items()}
        outputs = run(slice(tokens, None), layer.make_cache(copies))
        return not all(map(torch.equal, outputs, unchanged))

    copies = {index: state.clone() for index, state in states.items()}
    unchanged = run(slice(tokens, None), layer.make_cache(copies))
    return all(differs(index) for index in states)


def _chunk_of(value: Any, chunk: slice) -> Any:
    return value[:, chunk] if is_of_tokens(value, _PROBE_TOKENS) else value


def is_of_tokens(value: Any, num_tokens: int) -> bool:
    """Whether an argument of a layer has an entry for each of the packed tokens."""
    return isinstance(value, torch.Tensor) and value.ndim >= 2 and value.shape[:2] == (1, num_tokens)


def _parameters(module: torch.nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(module.forward).parameters)


def _cache_in(values: Iterable[Any]) -> Cache | None:
    return next((value for value in values if isinstance(value, Cache)), None)


def _states(cache: Cache) -> dict[_StateKey, torch.Tensor]:
    """The states that a cache of transformers holds."""
    found: dict[_StateKey, torch.Tensor] = {}
    for layer_index, layer in enumerate(cache.layers):
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            for kind, states in (("conv", layer.conv_states), ("recurrent", layer.recurrent_states)):
                found |= {(layer_index, kind, index): one for index, one in states.items() if one is not None}
    return found
