"""Stacked adapters: the factors of all resident adapters for layers that read the same input, slot by slot.

A bank holds one down-projection for every slot, `a` of shape (slots, layers x rank, in), and one up-projection for
every slot and layer, `b` of shape (slots, rank, out). Layers with a common input (q, k and v; gate and up) share
one shrink, `x @ a`. An adapter of a lower rank, or one that leaves a layer alone, has zeros in its place, so any
adapters share a step.

Two ways to compute the same sums, chosen for each step by `TokenSlots`:

- each: two products for every run of tokens with the same adapter. No weight is copied and every product has its own
  number of rows; best for a few adapters and for long prompts.
- together: two batched products over a range of slots, read where they are. The number of operations does not
  depend on the number of adapters; best when many adapters have a token or two each, as in decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from adapterhub.lora.delta import LoraDelta
    from adapterhub.lora.slots import TokenSlots


class Bank:
    """The resident adapters of layers that share an input.

    Args:
        slots: How many adapters can be resident.
        in_features: The width of the input.
        dtype: What the adapters are kept and computed in.
        device: Where they are.
    """

    def __init__(self, slots: int, in_features: int, dtype: torch.dtype, device: torch.device) -> None:
        self._slots = slots
        self._in = in_features
        self._dtype, self._device = dtype, device
        self._layers: list[str] = []
        self._out: dict[str, int] = {}
        self._rank = 0
        self._loaded: dict[int, Mapping[str, LoraDelta]] = {}
        self._a = self._zeros(0)
        self._b: dict[str, torch.Tensor] = {}
        self._scale: dict[str, torch.Tensor] = {}
        self._scaled: dict[str, set[int]] = {}

    @property
    def bytes(self) -> int:
        """What the stacked factors take."""
        return sum(t.nbytes for t in (self._a, *self._b.values(), *self._scale.values()))

    def load(self, slot: int, deltas: Mapping[str, LoraDelta]) -> None:
        """Puts an adapter into a slot: layer name -> what it changes there."""
        self.clear(slot)
        rank = max(self._rank, *(delta.a.shape[0] for delta in deltas.values()))
        new = [name for name in deltas if name not in self._out]
        if rank > self._rank or new:
            self._grow(rank, {name: deltas[name].b.shape[0] for name in new})
        self._write(slot, deltas)

    def clear(self, slot: int) -> None:
        """Empties a slot; an empty one is left as it is."""
        for name, delta in self._loaded.pop(slot, {}).items():
            place, rank = self._layers.index(name) * self._rank, delta.a.shape[0]
            self._a[slot, place : place + rank].zero_()
            self._b[name][slot, :rank].zero_()
            if delta.column_scale is not None:
                self._scale[name][slot].fill_(1)
                self._scaled[name].discard(slot)

    def apply(
        self, name: str, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None, step: TokenSlots
    ) -> torch.Tensor:
        """Adds to a layer's output what the adapters of a step change.

        Args:
            name: The layer.
            x: Its input, shape (..., in_features), as many tokens as the step has.
            y: The base layer's output, shape (..., out_features); it is changed in place.
            bias: The base layer's bias, shape (out_features,).
            step: Which token has which adapter.
        """
        if name not in self._b:
            return y
        own = y.view(-1, y.shape[-1])[step.first : step.last]
        # DoRA (arXiv 2402.09353) scales the rows of the adapted weight, and so the output without its bias.
        scaled = not self._scaled[name].isdisjoint(step.slots)
        if scaled and bias is not None:
            own -= bias
        shrunk = step.remember(self, x, self._shrink)
        place = self._layers.index(name) * self._rank
        self._expand(shrunk[..., place : place + self._rank], self._b[name], own, step)
        if scaled:
            own *= self._scale[name].index_select(0, step.slot_of_token)
            if bias is not None:
                own += bias
        return y

    def _shrink(self, x: torch.Tensor, step: TokenSlots) -> torch.Tensor:
        """The input in the adapters' low rank: (tokens, layers x rank), or (slots, tokens of each, layers x rank)."""
        own = x.reshape(-1, self._in)[step.first : step.last]
        if step.together:
            return torch.bmm(step.spread(own), self._a[step.low : step.high].transpose(1, 2))
        shrunk = own.new_empty(len(own), self._a.shape[1])
        for slot, start, stop in step.runs:
            torch.mm(own[start:stop], self._a[slot].T, out=shrunk[start:stop])
        return shrunk

    def _expand(self, shrunk: torch.Tensor, b: torch.Tensor, own: torch.Tensor, step: TokenSlots) -> None:
        if not step.together:
            for slot, start, stop in step.runs:
                own[start:stop].addmm_(shrunk[start:stop], b[slot])
        elif step.even:
            own.view(step.high - step.low, -1, own.shape[1]).baddbmm_(shrunk, b[step.low : step.high])
        else:
            own += step.collect(torch.bmm(shrunk, b[step.low : step.high]))

    def _write(self, slot: int, deltas: Mapping[str, LoraDelta]) -> None:
        for name, delta in deltas.items():
            place, rank = self._layers.index(name) * self._rank, delta.a.shape[0]
            self._a[slot, place : place + rank] = delta.a
            self._b[name][slot, :rank] = delta.b.T
            if delta.column_scale is not None:
                if name not in self._scale:
                    self._scale[name] = self._zeros(self._slots, self._out[name]).fill_(1)
                self._scale[name][slot] = delta.column_scale
                self._scaled[name].add(slot)
        self._loaded[slot] = deltas

    def _grow(self, rank: int, layers: Mapping[str, int]) -> None:
        """Makes room for a higher rank or further layers; what is resident is written anew."""
        resident = dict(self._loaded)
        self._rank = rank
        self._layers += layers
        self._out.update(layers)
        self._a = self._zeros(self._slots, len(self._layers) * rank, self._in)
        self._b = {name: self._zeros(self._slots, rank, self._out[name]) for name in self._layers}
        for name in layers:
            self._scaled[name] = set()
        for slot, deltas in resident.items():
            self._write(slot, deltas)

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=self._dtype, device=self._device)
