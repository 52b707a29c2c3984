"""Stacked adapters: the factors of all resident adapters for layers that read the same input, slot by slot.

A bank holds one down-projection for every slot, `a` of shape (slots, in, layers x rank), and one up-projection for
every slot and layer, `b` of shape (slots, rank, out). Layers with a common input (q, k and v; gate and up) share
one shrink, `x @ a`. An adapter of a lower rank, or one that leaves a layer alone, has zeros in its place, so any
adapters share a step.

Two ways to compute the same sums, chosen for each step by `LoraMapping`:

- each: two products for every run of tokens with the same adapter. No weight is copied and every product has its own
  number of rows; best for a few adapters and for long prompts.
- together: two batched products over a range of slots, read where they are. The number of operations does not
  depend on the number of adapters; best when many adapters have a token or two each, as in decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.mapping import LoraMapping

_SHRINK = ""  # where a layer's name stands for its up-projection


class StackedLoraWeights:
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
        self._layers: dict[str, int] = {}  # to their place in the shrink
        self._out: dict[str, int] = {}
        self._rank = 0
        self._loaded: dict[int, dict[str, LoraDelta]] = {}
        self._a = self._zeros(0, 0, 0)
        self._views: dict[tuple[str, int, int], torch.Tensor] = {}
        self._b: dict[str, torch.Tensor] = {}
        self._scale: dict[str, torch.Tensor] = {}
        self._scaled: dict[str, set[int]] = {}

    @property
    def bytes(self) -> int:
        """What the stacked factors take."""
        return sum(t.nbytes for t in (self._a, *self._b.values(), *self._scale.values()))

    def load(self, slot: int, deltas: Mapping[str, LoraDelta]) -> None:
        """Puts an adapter into a slot, in place of what it held: layer name -> what it changes there."""
        for name, delta in list(self._loaded.get(slot, {}).items()):
            if name not in deltas or not deltas[name].covers(delta):
                self._wipe(slot, name)
        rank = max(self._rank, *(delta.a.shape[0] for delta in deltas.values()))
        new = [name for name in deltas if name not in self._out]
        if rank > self._rank or new:
            self._grow(rank, {name: deltas[name].b.shape[0] for name in new})
        self._write(slot, deltas)

    def clear(self, slot: int) -> None:
        """Empties a slot; an empty one is left as it is."""
        for name in list(self._loaded.get(slot, ())):
            self._wipe(slot, name)

    def apply(
        self, name: str, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None, step: LoraMapping
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
        own = step.own(y.view(-1, y.shape[-1]))
        # DoRA (arXiv 2402.09353) scales the rows of the adapted weight, and so the output without its bias.
        scaled = not self._scaled[name].isdisjoint(step.slots)
        if scaled and bias is not None:
            own -= bias
        shrunk = step.remember(self, x, self._shrink)[self._layers[name]]
        self._expand(name, shrunk, own, step)
        if scaled:
            own *= self._scale[name].index_select(0, step.slot_of_token)
            if bias is not None:
                own += bias
        return y

    def _shrink(self, x: torch.Tensor, step: LoraMapping) -> Sequence[torch.Tensor]:
        """For each layer the input in the adapters' low rank: (tokens, rank), or (slots, tokens of each, rank)."""
        own = step.own(x.reshape(-1, self._in))
        if step.together:
            shrunk = torch.bmm(step.spread(own), self._slots_of(_SHRINK, step.low, step.high))
        elif len(step.runs) == 1:
            shrunk = own.mm(self._slot_of(_SHRINK, step.low))
        else:
            shrunk = own.new_empty(len(own), self._a.shape[2])
            for slot, start, stop in step.runs:
                torch.mm(own[start:stop], self._slot_of(_SHRINK, slot), out=shrunk[start:stop])
        return (shrunk,) if len(self._layers) == 1 else torch.split(shrunk, self._rank, -1)

    def _expand(self, name: str, shrunk: torch.Tensor, own: torch.Tensor, step: LoraMapping) -> None:
        if not step.together:
            for slot, start, stop in step.runs:
                part = (own, shrunk) if len(step.runs) == 1 else (own[start:stop], shrunk[start:stop])
                part[0].addmm_(part[1], self._slot_of(name, slot))
            return
        b = self._slots_of(name, step.low, step.high)
        if step.even:
            own.view(step.high - step.low, -1, own.shape[1]).baddbmm_(shrunk, b)
        else:
            own += step.collect(torch.bmm(shrunk, b))

    def _slot_of(self, name: str, slot: int) -> torch.Tensor:
        """One slot's factor of a layer, or its shrink, as (in, out). Making a view costs as much as a small product."""
        key = (name, slot, slot)
        if key not in self._views:
            self._views[key] = (self._a if name == _SHRINK else self._b[name])[slot]
        return self._views[key]

    def _slots_of(self, name: str, low: int, high: int) -> torch.Tensor:
        """The same of a range of slots, as (slots, in, out)."""
        key = (name, low, high)
        if key not in self._views:
            self._views[key] = (self._a if name == _SHRINK else self._b[name])[low:high]
        return self._views[key]

    def _write(self, slot: int, deltas: Mapping[str, LoraDelta]) -> None:
        self._loaded[slot] = dict(deltas)  # first, so that `clear` wipes out what a failure leaves half done
        for name, delta in deltas.items():
            a, b = self._factors(slot, name, delta)
            a.copy_(delta.a.T)
            b.copy_(delta.b.T)
            if delta.magnitude_scale is not None:
                if name not in self._scale:
                    self._scale[name] = self._zeros(self._slots, self._out[name]).fill_(1)
                self._scale[name][slot] = delta.magnitude_scale
                self._scaled[name].add(slot)

    def _wipe(self, slot: int, name: str) -> None:
        """Empties a slot of what its adapter changes in a layer."""
        for factor in self._factors(slot, name, self._loaded[slot].pop(name)):
            factor.zero_()
        if slot in self._scaled[name]:
            self._scale[name][slot].fill_(1)
            self._scaled[name].discard(slot)

    def _grow(self, rank: int, layers: Mapping[str, int]) -> None:
        """Makes room for a higher rank or further layers; what is resident is written anew."""
        resident = dict(self._loaded)
        out = {**self._out, **layers}
        # Stored as it is multiplied with, but for the order in memory: a row of the down-projection lies in one piece.
        a = self._zeros(self._slots, len(out) * rank, self._in).transpose(1, 2)
        b = {name: self._zeros(self._slots, rank, width) for name, width in out.items()}
        # Memory may have run out by now; what is resident stays as it was.
        self._rank, self._out, self._a, self._b = rank, out, a, b
        self._layers = {name: place for place, name in enumerate(out)}
        self._views.clear()
        for name in layers:
            self._scaled[name] = set()
        for slot, deltas in resident.items():
            self._write(slot, deltas)

    def _factors(self, slot: int, name: str, delta: LoraDelta) -> tuple[torch.Tensor, torch.Tensor]:
        """Where in a slot a layer's change is: (in, r) of the shrink, and (r, out)."""
        place, rank = self._layers[name] * self._rank, delta.a.shape[0]
        return self._slot_of(_SHRINK, slot)[:, place : place + rank], self._slot_of(name, slot)[:rank]

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=self._dtype, device=self._device)
