"""Stacked LoRA weights: the factors of all resident adapters for layers that share an input, slot by slot.

`lora_a` has shape (slots, in, layers x rank), and each layer's `lora_b` shape (slots, rank, out). Layers with a common
input (q, k and v; gate and up) share one shrink, `x @ lora_a`; each expands with its own `lora_b`. An adapter of a
lower rank, or one that does not target a layer, has zeros there, so any adapters can share a batch. The terms shrink
and expand are those of vLLM's Punica kernels (arXiv 2310.18547).

Steps read the factors from memory, so beside activations in float32 they are kept in bfloat16 as long as all resident
adapters are bfloat16 exactly (`LoraDelta.in_bfloat16`): the sums are the same.

The products themselves are in `adapterhub.lora.kernels`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.kernels.choosing import choose_kernels
from adapterhub.lora.kernels.interface import LoraKernels, LoraStack, MakeKernels
from adapterhub.lora.mapping import LoraMapping


class StackedLoraWeights:
    """The weights of all resident adapters for layers that share an input. Not thread-safe.

    Args:
        slots: Maximum number of resident adapters.
        in_features: The width of the input.
        dtype: The dtype of the layers' inputs and outputs, and of the weights unless they are kept in bfloat16.
        device: The device of the weights.
        make_kernels: What computes the products; None chooses the fastest of the device.

    Attributes:
        version: Another number whenever the stacks may have moved.
    """

    def __init__(
        self,
        slots: int,
        in_features: int,
        dtype: torch.dtype,
        device: torch.device,
        make_kernels: MakeKernels | None = None,
    ) -> None:
        self._slots = slots
        self._in_features = in_features
        self._dtype, self._device = dtype, device
        self._out_features: dict[str, int] = {}
        self._loaded: dict[int, dict[str, LoraDelta]] = {}  # by slot
        self._make_kernels = make_kernels or choose_kernels(device)
        self._ranks: dict[tuple[str, int], int] = {}
        self._stack = LoraStack(self._zeros(dtype, 0, 0, 0), {}, {}, rank=0)
        self._kernels: LoraKernels = self._make_kernels(self._stack)
        self.version = 0
        self._magnitude_scale: dict[str, torch.Tensor] = {}
        self._dora_slots: dict[str, set[int]] = {}

    @property
    def bytes(self) -> int:
        """Memory of the stacked weights."""
        return sum(
            tensor.nbytes
            for tensor in (self._stack.lora_a, *self._stack.lora_b.values(), *self._magnitude_scale.values())
        )

    def load(self, slot: int, deltas: Mapping[str, LoraDelta]) -> None:
        """Writes an adapter into a slot, replacing its content.

        Args:
            slot: The slot.
            deltas: Layer name -> the adapter's change of that layer.

        Raises:
            torch.OutOfMemoryError: There is no memory for it; the other slots are unchanged, and `clear` empties this
                one.
        """
        for name, delta in list(self._loaded.get(slot, {}).items()):
            if name not in deltas or not deltas[name].covers(delta):
                self._reset_layer(slot, name)
        rank = max(self._stack.rank, *(delta.a.shape[0] for delta in deltas.values()))
        new = [name for name in deltas if name not in self._out_features]
        if rank > self._stack.rank or new or not self._holds(deltas):
            self._reallocate(rank, {name: deltas[name].b.shape[0] for name in new}, self._narrowest(deltas))
        self._write(slot, deltas)

    def clear(self, slot: int) -> None:
        """Empties a slot; an empty one is not touched."""
        for name in list(self._loaded.get(slot, ())):
            self._reset_layer(slot, name)

    def can_replay(self, slots: Collection[int]) -> bool:
        """Whether their kernels can, and none of the adapters has DoRA, whose scales Python looks up."""
        has_dora = any(not with_dora.isdisjoint(slots) for with_dora in self._dora_slots.values())
        return self._kernels.can_replay and not has_dora

    def apply(
        self, name: str, x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor | None, mapping: LoraMapping
    ) -> torch.Tensor:
        """Adds the adapters' changes to a layer's output.

        Args:
            name: The layer.
            x: Its input, shape (..., in_features), as many tokens as the mapping has.
            y: The base layer's output, shape (..., out_features); modified in place.
            bias: The base layer's bias, shape (out_features,).
            mapping: The adapters of the tokens.

        Returns:
            `y`.
        """
        dora_slots = self._dora_slots.get(name)
        if dora_slots is None:
            return y
        outputs = y if y.ndim == 2 else y.view(-1, y.shape[-1])
        # DoRA (arXiv 2402.09353) scales the rows of the adapted weight, and so the output without its bias.
        if not dora_slots or dora_slots.isdisjoint(mapping.slots):
            self._kernels.add_lora(name, x, outputs, mapping)
            return y
        selected = mapping.select(outputs)
        own_bias = None if bias is None else self._bias_of_dora(name, bias, mapping)
        if own_bias is not None:
            selected -= own_bias
        self._kernels.add_lora(name, x, outputs, mapping)
        selected *= self._magnitude_scale[name].index_select(0, mapping.token_slots)
        if own_bias is not None:
            selected += own_bias
        return y

    def _bias_of_dora(self, name: str, bias: torch.Tensor, mapping: LoraMapping) -> torch.Tensor:
        """The bias for the tokens with DoRA and zeros for others, which rounding must not change."""
        slots = self._dora_slots[name]
        has_dora = [slot in slots for slot, start, stop in mapping.runs for _ in range(start, stop)]
        return bias * torch.tensor(has_dora, device=bias.device)[:, None]

    def _write(self, slot: int, deltas: Mapping[str, LoraDelta]) -> None:
        # First, so that `clear` resets a slot that a failure left half written.
        self._loaded[slot] = dict(deltas)
        for name, delta in deltas.items():
            self._ranks[name, slot] = delta.a.shape[0]
            lora_a, lora_b = self._factors(slot, name, delta)
            # From pinned memory the host need not wait: see `SlotCopies`. PyTorch keeps it until the copies are done.
            lora_a.copy_(delta.a.T, non_blocking=True)
            lora_b.copy_(delta.b.T, non_blocking=True)
            if delta.magnitude_scale is not None:
                if name not in self._magnitude_scale:
                    scale = self._zeros(self._dtype, self._slots, self._out_features[name]).fill_(1)
                    self._magnitude_scale[name] = scale
                self._magnitude_scale[name][slot] = delta.magnitude_scale
                self._dora_slots[name].add(slot)

    def _reset_layer(self, slot: int, name: str) -> None:
        """Resets one layer of a slot to no change."""
        for factor in self._factors(slot, name, self._loaded[slot].pop(name)):
            factor.zero_()
        self._ranks.pop((name, slot), None)
        if slot in self._dora_slots[name]:
            self._magnitude_scale[name][slot].fill_(1)
            self._dora_slots[name].discard(slot)

    def _holds(self, deltas: Mapping[str, LoraDelta]) -> bool:
        """Whether the stack's dtype holds an adapter exactly."""
        return self._stack.lora_a.dtype is self._dtype or _all_bfloat16(deltas)

    def _narrowest(self, deltas: Mapping[str, LoraDelta]) -> torch.dtype:
        """The dtype that holds an adapter and the resident ones exactly, and is read in the least time."""
        exact = all(_all_bfloat16(adapter) for adapter in (deltas, *self._loaded.values()))
        narrow = exact and self._dtype is torch.float32 and self._kernels.reads_bfloat16
        return torch.bfloat16 if narrow else self._dtype

    def _reallocate(self, rank: int, layers: Mapping[str, int], dtype: torch.dtype) -> None:
        """Allocates the stacked weights anew: of a higher rank, for further layers, in another dtype.

        Resident adapters are written again.
        """
        resident = dict(self._loaded)
        out_features = {**self._out_features, **layers}
        # Row-major per rank, so that a row of the adapter's `lora_A` is contiguous and copying it into a slot is fast.
        lora_a = self._zeros(dtype, self._slots, len(out_features) * rank, self._in_features).transpose(1, 2)
        lora_b = {name: self._zeros(dtype, self._slots, rank, width) for name, width in out_features.items()}
        # Assigned only after all allocations succeeded, so that running out of memory changes nothing.
        columns = {name: index * rank for index, name in enumerate(out_features)}
        self._out_features, self._stack = out_features, LoraStack(lora_a, lora_b, columns, rank, self._ranks)
        self._kernels = self._make_kernels(self._stack)
        self.version += 1
        for name in layers:
            self._dora_slots[name] = set()
        for slot, deltas in resident.items():
            self._write(slot, deltas)

    def _factors(self, slot: int, name: str, delta: LoraDelta) -> tuple[torch.Tensor, torch.Tensor]:
        """The views of a slot that hold a layer's change: (in, r) of `lora_a` and (r, out) of `lora_b`."""
        stack, rank = self._stack, delta.a.shape[0]
        start = stack.columns[name]
        return stack.lora_a[slot, :, start : start + rank], stack.lora_b[name][slot, :rank]

    def _zeros(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype, device=self._device)


def _all_bfloat16(deltas: Mapping[str, LoraDelta]) -> bool:
    return all(delta.a.dtype is delta.b.dtype is torch.bfloat16 for delta in deltas.values())
