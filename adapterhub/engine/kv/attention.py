"""The attention of a transformers model, replaced by that of a step.

transformers' `AttentionInterface` calls a function that is registered by name. The step at hand is found at the module
that calls, and not in keyword arguments: some models hand those no further than their decoder layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

from adapterhub.engine.kv.masks import note_mask_function
from adapterhub.errors import EngineError

NAME = "adapterhub_packed"
PROBE_NAME = "adapterhub_packed_probe"  # of the same function; only under this name a model makes masks
_ATTRIBUTE = "adapterhub_attention"  # of each module that may call: the `PackedAttention` of its model

_UNSUPPORTED = {
    "position_bias": "scores that depend on the distance of two tokens",
    "sinks": "sinks that differ by token",
    "indices": "an index that chooses the tokens to attend to",
    "block_indices": "an index that chooses the tokens to attend to",
}
"""Arguments of attention functions that are not computed here -> what a base has that gives them."""


@dataclass(slots=True)  # not frozen: one is made in each layer, and frozen ones take four times as long
class AttentionCall:
    """What a model hands to its attention function in one layer.

    Attributes:
        module: The attention layer.
        query: Shape (1, heads, tokens, key_width).
        key: Shape (1, kv_heads, tokens, key_width).
        value: Shape (1, kv_heads, tokens, value_width).
        scale: Factor of the scores.
        window: How many tokens a token attends to, itself included; None for all, or if the mask says it.
        mask: What the model hides by, within `PackedAttention.noting_masks`; its `mask_function` is transformers'.
        softcap: Scores are bounded by it: `softcap * tanh(score / softcap)`.
        sinks: Shape (heads,): a score that takes its part of the attention and has no value.
    """

    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float
    window: int | None = None
    mask: torch.Tensor | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None


class AttentionStep(Protocol):
    """Computes the attention of one forward pass; `AttentionMetadata` is one."""

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """The next layer's output, shape (1, tokens, heads, value_width)."""
        ...


class PackedStep(ABC):
    """An `AttentionStep` that is given its tensors tokens first, without views."""

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """Computes the next call of the forward pass; see `AttentionStep.attend`."""
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (call.query, call.key, call.value))
        return self.attend_tokens(q, k, v, call.scale, softcap=call.softcap, sinks=call.sinks)[None]

    @abstractmethod
    def attend_tokens(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        *,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The next layer's output.

        Args:
            q: Shape (tokens, heads, key_width).
            k: Shape (tokens, kv_heads, key_width).
            v: Shape (tokens, kv_heads, value_width).
            scale: As in `AttentionCall`, and the rest too.
            softcap: Bound of the scores.
            sinks: Shape (heads,).

        Returns:
            Shape (tokens, heads, value_width), contiguous.
        """


class PackedAttention:
    """Replaces the attention of a model, which from then on is called within `using` only.

    Args:
        model: transformers' model.
    """

    def __init__(self, model: Any) -> None:
        self.step: AttentionStep | None = None
        # All attention of transformers finds its function by its module's configuration.
        self._callers = [
            module
            for module in model.modules()
            if isinstance(getattr(module, "config", None), PreTrainedConfig)
        ]
        configs = {id(module.config): module.config for module in self._callers}
        self._before = [(config, config._attn_implementation) for config in configs.values()]
        for name in (NAME, PROBE_NAME):
            AttentionInterface.register(name, _attend)
        AttentionMaskInterface.register(PROBE_NAME, note_mask_function)
        for module in self._callers:
            setattr(module, _ATTRIBUTE, self)
        self._name(NAME)

    @contextmanager
    def using(self, step: AttentionStep) -> Iterator[None]:
        """Attention in the forward pass within the context is that of a step."""
        self.step = step
        try:
            yield
        finally:
            self.step = None

    @contextmanager
    def noting_masks(self) -> Iterator[None]:
        """The model makes masks within the context, and a call has the function of its mask."""
        self._name(PROBE_NAME)
        try:
            yield
        finally:
            self._name(NAME)

    def undo(self) -> None:
        """Gives the model back the attention that it was loaded with."""
        for module in self._callers:
            module.__dict__.pop(_ATTRIBUTE, None)
        for config, implementation in self._before:
            config._attn_implementation_internal = implementation

    def _name(self, name: str) -> None:
        # Not `set_attn_implementation`: it leaves some models as they are, with a warning. The probe finds those too.
        for config, _ in self._before:
            config._attn_implementation_internal = name


def not_packed(reason: str) -> EngineError:
    """The error for a base whose attention is of another kind."""
    return EngineError(f"The base's attention cannot be computed in a packed batch: {reason}.")


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, as transformers' `AttentionInterface` calls it; there are no attention weights."""
    attention: PackedAttention | None = getattr(module, _ATTRIBUTE, None)
    if attention is None or attention.step is None:
        raise EngineError("The base was called outside its engine, which owns it.")
    for name in _UNSUPPORTED:
        if others.get(name) is not None:
            raise not_packed(f"it has {_UNSUPPORTED[name]}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    call = AttentionCall(module, query, key, value, scale, sliding_window, attention_mask, softcap, s_aux)
    return attention.step.attend(call), None
