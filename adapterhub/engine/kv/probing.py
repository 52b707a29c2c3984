"""What a model's attention is like, found by a forward pass and not from names in its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from adapterhub.engine.kv.attention import AttentionCall
from adapterhub.engine.kv.masks import CAUSAL, AttentionMask
from adapterhub.engine.kv.shape import LayerShape


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
        self.modules.append(call.module)
        mask = self._mask(call)
        kv_layer, shares_kv = self._kv_layer(call.key, call.value)
        self.layers.append(AttentionLayer(kv_layer, shares_kv, mask))
        heads, kv_heads = call.query.shape[1], call.key.shape[1]
        return call.value.repeat_interleave(heads // kv_heads, dim=1).transpose(1, 2)

    def _kv_layer(self, key: torch.Tensor, value: torch.Tensor) -> tuple[int, bool]:
        for index, stored in enumerate(self._stored):
            if key is stored[0] and value is stored[1]:
                return index, True
        self._stored.append((key, value))
        self.shapes.append(LayerShape(key.shape[1], key.shape[-1], value.shape[-1]))
        return len(self.shapes) - 1, False

    def _mask(self, call: AttentionCall) -> AttentionMask:
        """Calls with the same mask get the same object: a step then makes it once."""
        key = call.mask_function or call.window
        if key not in self._masks:
            if call.mask_function is not None:
                mask = AttentionMask.of_function(call.mask_function, call.query.device)
            else:
                mask = AttentionMask.of_window(call.window) if call.window else CAUSAL
            self._masks[key] = mask
        return self._masks[key]
