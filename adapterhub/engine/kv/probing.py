"""What a model's attention is like, found by a forward pass and not from names in its configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from adapterhub.engine.kv.attention import AttentionCall, not_packed
from adapterhub.engine.kv.masks import CAUSAL, AttentionMask
from adapterhub.engine.kv.shape import LayerShape

_PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
"""Layers of transformers' cache that hold keys and values; subclasses hold more."""


@dataclass(frozen=True)
class AttentionLayer:
    """One call of attention in a forward pass; most models make one in each layer.

    Attributes:
        kv_layer: Where its keys and values are: an index of `KVShape.layers`.
        shares_kv: Whether they are those of an earlier call, which has stored them.
        mask: Which tokens attend to which.
    """

    kv_layer: int
    shares_kv: bool = False
    mask: AttentionMask = CAUSAL


class AttentionProbe:
    """An `AttentionStep` of one token that notes what each call is given.

    Attributes:
        modules: The attention layers that made the calls.
        layers: The calls, in order; a model makes the same ones in every forward pass.
        shapes: The keys and values that they store.
    """

    def __init__(self) -> None:
        self.modules: list[torch.nn.Module] = []
        self.layers: list[AttentionLayer] = []
        self.shapes: list[LayerShape] = []
        self._stored: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._masks: dict[Any, AttentionMask] = {}

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """Attention of one token to itself."""
        if call.query.shape[0] != 1 or call.key.shape[2] != call.query.shape[2]:
            raise not_packed("its keys are not those of the step's tokens")
        self.modules.append(call.module)
        mask = self._mask(call)
        kv_layer, shares_kv = self._kv_layer(call.key, call.value)
        self.layers.append(AttentionLayer(kv_layer, shares_kv, mask))
        heads, kv_heads = call.query.shape[1], call.key.shape[1]
        return call.value.repeat_interleave(heads // kv_heads, dim=1).transpose(1, 2)

    def check_cache(self, config: Any) -> None:
        """Checks that transformers' own cache holds keys and values alone, of every token that a mask shows.

        Raises:
            EngineError: It does not.
        """
        cached = DynamicCache(config=config).layers
        for module, layer in zip(self.modules, self.layers, strict=True):
            index = getattr(module, "layer_idx", None)
            if index in range(len(cached)):
                _check_cache_layer(cached[index], layer.mask)

    def _kv_layer(self, key: torch.Tensor, value: torch.Tensor) -> tuple[int, bool]:
        for index, stored in enumerate(self._stored):
            if key is stored[0] and value is stored[1]:
                return index, True
        self._stored.append((key, value))
        self.shapes.append(LayerShape(key.shape[1], key.shape[-1], value.shape[-1]))
        return len(self.shapes) - 1, False

    def _mask(self, call: AttentionCall) -> AttentionMask:
        """Calls with the same mask get the same object: a step then makes it once."""
        function = getattr(call.mask, "mask_function", None)
        if call.mask is not None and function is None:
            raise not_packed("its masks are of its own kind")
        key = function or call.window
        if key not in self._masks:
            self._masks[key] = _mask_of(function, call.window, call.query.device)
        return self._masks[key]


def _mask_of(
    function: Callable[..., torch.Tensor] | None, window: int | None, device: torch.device
) -> AttentionMask:
    if function is not None:
        return AttentionMask.of_function(function, device)
    return AttentionMask.of_window(window) if window else CAUSAL


def _check_cache_layer(cached: Any, mask: AttentionMask) -> None:
    if type(cached) not in _PLAIN_LAYERS and not isinstance(cached, LinearAttentionCacheLayerMixin):
        raise not_packed(f"it keeps more than keys and values ({type(cached).__name__})")
    # Moshi's masks show all tokens, and its cache has the last ones.
    window = getattr(cached, "sliding_window", None)
    if window is not None and mask.causal_until > window:
        raise not_packed(f"after the prompt, which attends to all of its tokens, the last {window} are left")
