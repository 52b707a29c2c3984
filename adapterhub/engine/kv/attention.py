"""The attention of a transformers model, replaced by that of a step.

transformers' `AttentionInterface` calls a function that is registered by name. The step at hand is found at the module
that calls, and not in keyword arguments: some models hand those no further than their decoder layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from adapterhub.errors import EngineError

NAME = "adapterhub_packed"
_ATTRIBUTE = "adapterhub_attention"  # of each module that may call: the `PackedAttention` of its model


@dataclass(frozen=True)
class AttentionCall:
    """What a model hands to its attention function in one layer.

    Attributes:
        module: The attention layer.
        query: Shape (1, heads, tokens, key_width).
        key: Shape (1, kv_heads, tokens, key_width).
        value: Shape (1, kv_heads, tokens, value_width).
        scale: Factor of the scores.
        window: How many tokens a token attends to, itself included; None for all.
    """

    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float
    window: int | None


class AttentionStep(Protocol):
    """Computes the attention of one forward pass; `AttentionMetadata` is one."""

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """The next layer's output, shape (1, tokens, heads, value_width)."""
        ...


class PackedAttention:
    """Replaces the attention of a model, which from then on is called within `using` only.

    Args:
        model: transformers' model.

    Raises:
        EngineError: The model's attention cannot be replaced.
    """

    def __init__(self, model: Any) -> None:
        self.step: AttentionStep | None = None
        self._callers = [module for module in model.modules() if hasattr(module, "config")]
        configs = {id(module.config): module.config for module in self._callers}
        self._before = [(config, config._attn_implementation) for config in configs.values()]
        AttentionInterface.register(NAME, _attend)
        try:
            model.set_attn_implementation(NAME)
        except ValueError as error:
            self.undo()
            raise EngineError(
                f"A {type(model).__name__} cannot be served in a packed batch: its attention cannot be replaced "
                f"({error}).",
                hint="Models whose attention goes through transformers' AttentionInterface can.",
            ) from error
        for module in self._callers:
            setattr(module, _ATTRIBUTE, self)

    @contextmanager
    def using(self, step: AttentionStep) -> Iterator[None]:
        """Attention in the forward pass within the context is that of a step."""
        self.step = step
        try:
            yield
        finally:
            self.step = None

    def undo(self) -> None:
        """Gives the model back the attention that it was loaded with."""
        for module in self._callers:
            module.__dict__.pop(_ATTRIBUTE, None)
        for config, implementation in self._before:
            config._attn_implementation_internal = implementation


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
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, as transformers' `AttentionInterface` calls it; there are no attention weights."""
    attention: PackedAttention | None = getattr(module, _ATTRIBUTE, None)
    if attention is None or attention.step is None:
        raise EngineError("The base was called outside its engine, which owns it.")
    if softcap is not None or s_aux is not None:
        raise EngineError(
            "The base's attention cannot be computed by this engine: it soft-caps its scores or has attention sinks."
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return attention.step.attend(AttentionCall(module, query, key, value, scale, sliding_window)), None
