"""LoRA's products by torch's own operations, on any device and in any dtype.

There are two ways to compute the same sums, and `LoraMapping` chooses one for each forward pass:

- per adapter: two products for every run of tokens with the same adapter. No weight is copied and nothing is padded;
  faster for a few adapters and for long prompts.
- batched: two batched products over a range of slots, read in place. The number of operations does not depend on the
  number of adapters; faster when many adapters have a token or two each, as in decoding.

For batch invariance there is a third one: token by token, with the adapter's own rank.

Layers with a common input share one shrink.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapterhub.lora.kernels.interface import LoraStack
from adapterhub.lora.mapping import LoraMapping

_LORA_A = ""  # the key of `lora_a` among views, where a layer's name is the key of its `lora_b`


class TorchOps:
    """`LoraKernels` of torch."""

    name = "torch"
    can_replay = False
    reads_bfloat16 = False  # it makes copies in float32

    def __init__(self, stack: LoraStack) -> None:
        self._stack = stack
        self._index = {layer: column // stack.rank for layer, column in stack.columns.items()}
        self._views: dict[tuple[str, int, int], torch.Tensor] = {}

    def add_lora(self, layer: str, x: torch.Tensor, y: torch.Tensor, mapping: LoraMapping) -> None:
        """Adds the adapters' products to a layer's output; see `LoraKernels.add_lora`."""
        if mapping.token_by_token:
            self._add_by_token(layer, x, mapping.select(y), mapping)
            return
        shrunk = mapping.compute_once(self, x, self._shrink)[self._index[layer]]
        self._expand(layer, shrunk, mapping.select(y), mapping)

    def _add_by_token(
        self, layer: str, x: torch.Tensor, selected: torch.Tensor, mapping: LoraMapping
    ) -> None:
        stack = self._stack
        inputs, column = mapping.select(x.reshape(-1, stack.lora_a.shape[1])), stack.columns[layer]
        for slot, start, stop in mapping.runs:
            if rank := stack.ranks.get((layer, slot)):
                lora_a = stack.lora_a[slot, :, column : column + rank].to(inputs.dtype)
                lora_b = stack.lora_b[layer][slot, :rank].to(inputs.dtype)
                selected[start:stop].addmm_(inputs[start:stop].mm(lora_a), lora_b)

    def _shrink(self, x: torch.Tensor, mapping: LoraMapping) -> Sequence[torch.Tensor]:
        """`x @ lora_a`, one tensor for each layer: (tokens, rank), or (slots, longest run, rank) if batched."""
        selected = mapping.select(x.reshape(-1, self._stack.lora_a.shape[1]))
        if mapping.batched:
            lora_a = self._slots_view(_LORA_A, mapping.first_slot, mapping.end_slot, x.dtype)
            shrunk = torch.bmm(mapping.pad(selected), lora_a)
        elif len(mapping.runs) == 1:
            shrunk = selected.mm(self._slot_view(_LORA_A, mapping.first_slot, x.dtype))
        else:
            shrunk = selected.new_empty(len(selected), self._stack.lora_a.shape[2])
            for slot, start, stop in mapping.runs:
                lora_a = self._slot_view(_LORA_A, slot, x.dtype)
                torch.mm(selected[start:stop], lora_a, out=shrunk[start:stop])
        return (shrunk,) if len(self._index) == 1 else torch.split(shrunk, self._stack.rank, -1)

    def _expand(self, layer: str, shrunk: torch.Tensor, selected: torch.Tensor, mapping: LoraMapping) -> None:
        """Adds `shrunk @ lora_b` to the selected tokens of the output, in place."""
        if mapping.batched:
            lora_b = self._slots_view(layer, mapping.first_slot, mapping.end_slot, selected.dtype)
            if mapping.needs_padding:
                selected += mapping.unpad(torch.bmm(shrunk, lora_b))
            else:
                num_slots = mapping.end_slot - mapping.first_slot
                selected.view(num_slots, -1, selected.shape[1]).baddbmm_(shrunk, lora_b)
        elif len(mapping.runs) == 1:
            selected.addmm_(shrunk, self._slot_view(layer, mapping.first_slot, selected.dtype))
        else:
            for slot, start, stop in mapping.runs:
                lora_b = self._slot_view(layer, slot, selected.dtype)
                selected[start:stop].addmm_(shrunk[start:stop], lora_b)

    def _slot_view(self, name: str, slot: int, dtype: torch.dtype) -> torch.Tensor:
        """`lora_a` or a layer's `lora_b` of one slot, 2-D. Views are cached: one costs as much as a small product."""
        key = (name, slot, slot)
        if key not in self._views:
            self._views[key] = self._factor(name)[slot]
        return self._views[key].to(dtype)

    def _slots_view(self, name: str, low: int, high: int, dtype: torch.dtype) -> torch.Tensor:
        """The same of a range of slots, 3-D."""
        key = (name, low, high)
        if key not in self._views:
            self._views[key] = self._factor(name)[low:high]
        return self._views[key].to(dtype)

    def _factor(self, name: str) -> torch.Tensor:
        return self._stack.lora_a if name == _LORA_A else self._stack.lora_b[name]
