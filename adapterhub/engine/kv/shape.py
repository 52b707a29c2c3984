"""What the slot of a sequence holds: keys and values of each token, by layer, and states of a fixed size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

import torch

from adapterhub.errors import EngineError


@dataclass(frozen=True)
class LayerShape:
    """One token's keys and values in one layer.

    Attributes:
        num_kv_heads: Key and value heads.
        key_width: Width of each key head.
        value_width: Width of each value head.
    """

    num_kv_heads: int
    key_width: int
    value_width: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.num_kv_heads * (self.key_width + self.value_width)


@dataclass(frozen=True)
class StateShape:
    """One state of one layer, as transformers' `LinearAttentionLayer` keeps it.

    Attributes:
        layer: Index of the layer.
        kind: `"conv"` for the last inputs of a convolution, `"recurrent"` for the state of a recurrence.
        index: Its number among the states of its kind in the layer.
        shape: The shape for one sequence.
        dtype: The dtype that it is kept in.
    """

    layer: int
    kind: Literal["conv", "recurrent"]
    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of it for one sequence."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class KVShape:
    """One token's keys and values in all layers that have them, and the states of a sequence.

    Attributes:
        layers: The layers, in the order in which a forward pass computes them.
        dtype: The dtype that they are stored in.
        device: The device that they are stored on.
        states: What a sequence has in stateful layers, however long it is.
    """

    layers: tuple[LayerShape, ...]
    dtype: torch.dtype
    device: torch.device
    states: tuple[StateShape, ...] = ()

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype, device: torch.device) -> KVShape:
        """The shape by a transformers configuration whose layers are all alike, without its model.

        Raises:
            EngineError: The model has no attention.
        """
        num_heads = getattr(config, "num_attention_heads", None)
        if not num_heads:
            raise EngineError(
                f"A model of type {config.model_type!r} cannot be served: it has no attention with a KV cache.",
                hint="Hybrid and recurrent models are not supported.",
            )
        width = getattr(config, "head_dim", None) or config.hidden_size // num_heads
        layer = LayerShape(getattr(config, "num_key_value_heads", None) or num_heads, width, width)
        return cls((layer,) * config.num_hidden_layers, dtype, device)

    @cached_property
    def numel_per_token(self) -> int:
        """Elements of one token's keys and values in all layers."""
        return sum(layer.numel for layer in self.layers)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return self.numel_per_token * self.dtype.itemsize

    @property
    def unit_bytes(self) -> int:
        """Bytes of what memory is counted in: one token's keys and values, or a byte where there are none."""
        return self.bytes_per_token or 1

    @property
    def states_bytes(self) -> int:
        """Bytes of a sequence's states: those in its slot, and those that its last step computed (see `states.py`)."""
        return 2 * sum(state.bytes for state in self.states)

    @property
    def units_per_slot(self) -> int:
        """What they take of those units, rounded up."""
        return -(-self.states_bytes // self.unit_bytes)
