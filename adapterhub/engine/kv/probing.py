"""What a model's attention is like, found by a forward pass and not from names in its configuration."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adapterhub.engine.kv.attention import AttentionCall
from adapterhub.engine.kv.shape import LayerShape


@dataclass(frozen=True)
class AttentionLayer:
    """One call of attention in a forward pass; most models make one in each layer.

    Attributes:
        kv_layer: Where its keys and values are: an index of `KVShape.layers`.
        shares_kv: Whether they are those of an earlier call, which has stored them.
    """

    kv_layer: int
    shares_kv: bool


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

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """Attention of one token to itself."""
        self.modules.append(call.module)
        self.layers.append(self._layer(call.key, call.value))
        heads, kv_heads = call.query.shape[1], call.key.shape[1]
        return call.value.repeat_interleave(heads // kv_heads, dim=1).transpose(1, 2)

    def _layer(self, key: torch.Tensor, value: torch.Tensor) -> AttentionLayer:
        for index, stored in enumerate(self._stored):
            if key is stored[0] and value is stored[1]:
                return AttentionLayer(index, shares_kv=True)
        self._stored.append((key, value))
        self.shapes.append(LayerShape(key.shape[1], key.shape[-1], value.shape[-1]))
        return AttentionLayer(len(self.shapes) - 1, shares_kv=False)
