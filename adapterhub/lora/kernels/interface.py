"""What an implementation of LoRA's products gets and what it offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from adapterhub.lora.mapping import LoraMapping


@dataclass(frozen=True)
class LoraStack:
    """The factors of all slots for layers that share an input. Contents change as slots are loaded, addresses do not.

    Attributes:
        lora_a: The down-projections, shape (slots, in, layers x rank), layer beside layer; a row of an adapter's
            `lora_A` is contiguous in memory.
        lora_b: The up-projection of each layer, shape (slots, rank, out), contiguous.
        columns: The first column of each layer in `lora_a`.
        rank: The highest rank of a resident adapter; lower ones are filled up with zeros.
        ranks: The rank of each layer's adapter in a slot: (layer, slot) -> rank.
    """

    lora_a: torch.Tensor
    lora_b: Mapping[str, torch.Tensor]
    columns: Mapping[str, int]
    rank: int
    ranks: Mapping[tuple[str, int], int] = field(default_factory=dict)


class LoraKernels(Protocol):
    """The products with one stack; made anew for each `LoraStack`, so it may keep what it prepared. Not thread-safe.

    Attributes:
        name: Which implementation it is.
        can_replay: Whether it reads the adapters of tokens on the device alone, from `LoraMapping.tiles`, so that a
            captured graph can be replayed with others.
        reads_bfloat16: Whether it reads a stack in bfloat16 for tokens in float32 as it is, in less time than one in
            float32. Every implementation accepts such a stack, and computes what its values are in float32.
    """

    name: str
    can_replay: bool
    reads_bfloat16: bool

    def add_lora(self, layer: str, x: torch.Tensor, y: torch.Tensor, mapping: LoraMapping) -> None:
        """Adds `x @ lora_a[slot] @ lora_b[slot]` to a layer's output, in place; vLLM's `add_lora_linear`.

        Args:
            layer: The layer.
            x: Its input, shape (..., in); the tokens that `mapping` has, in its order.
            y: Its output, shape (tokens, out), the last dimension contiguous.
            mapping: The slot of each token; those without an adapter are not touched. If it is `token_by_token`, the
                order of each sum depends on nothing but the token's own adapter.
        """
        ...


class MakeKernels(Protocol):
    """Makes the kernels of a stack."""

    def __call__(self, stack: LoraStack) -> LoraKernels: ...
