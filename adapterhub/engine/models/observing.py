"""What transformers' model computes of a few tokens, layer by layer: what a forward pass of our own has to equal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from adapterhub.engine.kv.attention import AttentionCall, PackedStep
from adapterhub.engine.models.transformers import TransformersForward

_POSITIONS = (1, 4, 9)
Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine of each token, shape (1, tokens, rotated width) each."""


@dataclass
class RotaryCall:
    """A call of the rotary module, which may be called anew for each kind of layer.

    Attributes:
        arguments: What it was given after inputs and positions.
        named: The same by name.
        rotation: What it returned.
    """

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    rotation: Rotation


@dataclass
class LayerPass:
    """One decoder layer in the pass.

    Attributes:
        hidden: Its input, shape (tokens, hidden).
        rotation: The cosine and sine that it was given; None if it was given none.
        output: Its output, shape (tokens, hidden).
        call: Its call of attention.
    """

    hidden: torch.Tensor
    rotation: Rotation | None
    output: torch.Tensor
    call: AttentionCall


@dataclass
class ObservedPass:
    """A forward pass of transformers' model; `observe` makes one. No token attends to another.

    Attributes:
        token_ids: Shape (tokens,).
        positions: Shape (tokens,).
        layers: Its decoder layers, in the order of their calls.
        rotary: The calls of its rotary module.
        logits: Shape (tokens, vocabulary).
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    layers: list[LayerPass] = field(default_factory=list)
    rotary: list[RotaryCall] = field(default_factory=list)
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))


def each_to_itself(call: AttentionCall) -> torch.Tensor:
    """Attention of each token to itself alone, shape (1, tokens, heads, value_width)."""
    groups = call.query.shape[1] // call.value.shape[1]
    return call.value.repeat_interleave(groups, dim=1).transpose(1, 2)


class NotedCalls(PackedStep):
    """A `PackedStep` that keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """Attention of each token to itself."""
        self.calls.append(call)
        return each_to_itself(call)

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
        """The same of tensors of shape (tokens, heads, width)."""
        query, key, value = (one.transpose(0, 1)[None] for one in (q, k, v))
        call = AttentionCall(nn.Identity(), query, key, value, scale, softcap=softcap, sinks=sinks)
        return self.attend(call)[0].contiguous()


@torch.inference_mode()
def observe(
    forward: TransformersForward, layers: nn.ModuleList, rotary: nn.Module, vocabulary_size: int
) -> ObservedPass:
    """Runs transformers' model on a few tokens.

    Args:
        forward: Its forward pass.
        layers: Its decoder layers.
        rotary: Its rotary module.
        vocabulary_size: Width of its logits.
    """
    device = next(layers.parameters()).device
    positions = torch.tensor(_POSITIONS, device=device)
    token_ids = positions * 31 % vocabulary_size
    seen, step = ObservedPass(token_ids, positions), NotedCalls()
    passes: list[tuple[torch.Tensor, Rotation | None, torch.Tensor]] = []
    with _hooks(layers, rotary, passes, seen.rotary):
        seen.logits = forward(token_ids, positions, torch.arange(len(_POSITIONS), device=device), step)
    seen.layers = [LayerPass(*one, call) for one, call in zip(passes, step.calls, strict=True)]
    return seen


@contextmanager
def _hooks(
    layers: nn.ModuleList,
    rotary: nn.Module,
    passes: list[tuple[torch.Tensor, Rotation | None, torch.Tensor]],
    rotations: list[RotaryCall],
) -> Iterator[None]:
    """Within it, calls of the layers and of the rotary module are noted."""

    def after_layer(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        hidden = inputs[0] if inputs else named["hidden_states"]
        output = output[0] if isinstance(output, tuple) else output
        passes.append((hidden[0], named.get("position_embeddings"), output[0]))

    def after_rotary(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        further = {name: value for name, value in named.items() if name not in ("x", "position_ids")}
        rotations.append(RotaryCall(inputs[2:], further, output))

    register = partial(nn.Module.register_forward_hook, with_kwargs=True)
    handles = [register(layer, after_layer) for layer in layers]
    handles.append(register(rotary, after_rotary))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
