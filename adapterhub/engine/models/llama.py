"""The forward pass of decoders of Llama's structure, written out.

transformers' model spends much of a small step in Python and in operations on a few numbers. Here a step is 2-D tensors
and a few operations for each layer; modules are called past `nn.Module.__call__`. The weights are those of its modules,
and adapters wrap these as ever. Which models have the structure is found out by `find_llama`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import SiLUActivation

from adapterhub.engine.kv.attention import AttentionCall, PackedStep
from adapterhub.engine.models.norms import Norms
from adapterhub.engine.models.observing import RotaryCall, Rotation

Operation = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LayerKind:
    """What a decoder layer's modules do not tell.

    Attributes:
        call: A call of its attention, for all but the tensors.
        rotation: Which call of the rotary module gives its rotation; None if it has none.
    """

    call: AttentionCall
    rotation: int | None


class LlamaForward:
    """A `ModelForward` of a decoder of Llama's structure.

    Args:
        model: transformers' model.
        decoder: The part of it that has the embedding, the layers, the last norm and the rotary module.
        kinds: What each layer is like.
        rotary: The calls of the rotary module in a pass.
        softcap: Logits are bounded by it: `softcap * tanh(logit / softcap)`.
    """

    name = "native"

    def __init__(
        self,
        model: Any,
        decoder: Any,
        kinds: Sequence[LayerKind],
        rotary: Sequence[RotaryCall],
        softcap: float | None,
    ) -> None:
        self._model, self._decoder = model, decoder
        self._kinds, self._rotary, self._softcap = kinds, rotary, softcap
        self._norms = Norms()
        self.bind()

    def bind(self) -> None:
        """Looks up the modules; to be called when some have been replaced."""
        decoder = self._decoder
        self._embed, self._norm = decoder.embed_tokens, self._norms(decoder.norm)
        self._head: Operation = self._model.get_output_embeddings()
        self.layers = [
            LlamaLayer(layer, kind, self._norms)
            for layer, kind in zip(decoder.layers, self._kinds, strict=True)
        ]

    def __call__(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        logit_indices: torch.Tensor,
        step: PackedStep,
    ) -> torch.Tensor:
        """See `ModelForward`."""
        hidden = self.embed(token_ids)
        rotations = self.rotations(hidden, positions)
        for layer in self.layers:
            hidden = layer(hidden, rotations, step)
        return self.logits(hidden, logit_indices)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The input of the first layer, shape (tokens, hidden)."""
        hidden: torch.Tensor = self._embed(token_ids)
        return hidden

    def rotations(self, hidden: torch.Tensor, positions: torch.Tensor) -> list[Rotation]:
        """The rotation of each call of the rotary module, as `rotate` takes it."""
        own = self._decoder.rotary_emb.forward
        return [prepared(own(hidden, positions[None], *one.arguments, **one.named)) for one in self._rotary]

    def logits(self, hidden: torch.Tensor, logit_indices: torch.Tensor) -> torch.Tensor:
        """The logits of some tokens, given the output of the last layer."""
        hidden = self._norm(hidden)  # of all tokens, as an adapter that replaces it expects
        if logit_indices.shape[0] != hidden.shape[0]:
            hidden = hidden.index_select(0, logit_indices)
        logits = self._head(hidden)
        if self._softcap is None:
            return logits
        return logits.div_(self._softcap).tanh_().mul_(self._softcap)


class LlamaLayer:
    """One decoder layer.

    Args:
        layer: transformers' module.
        kind: What it does not tell.
        norms: What computes its norms.
    """

    def __init__(self, layer: Any, kind: LayerKind, norms: Norms) -> None:
        attention, mlp, self._kind = layer.self_attn, layer.mlp, kind
        has_four_norms = hasattr(layer, "pre_feedforward_layernorm")
        self._before_attention = norms(layer.input_layernorm)
        after, before = layer.post_attention_layernorm, layer.post_attention_layernorm
        if has_four_norms:
            before = layer.pre_feedforward_layernorm
        self._after_attention = norms(after) if has_four_norms else None
        self._before_mlp = norms(before)
        self._after_mlp = norms(layer.post_feedforward_layernorm) if has_four_norms else None
        self._q: Operation = attention.q_proj.forward
        self._k: Operation = attention.k_proj.forward
        self._v: Operation = attention.v_proj.forward
        self._o: Operation = attention.o_proj.forward
        self._q_norm = norms(attention.q_norm) if hasattr(attention, "q_norm") else None
        self._k_norm = norms(attention.k_norm) if hasattr(attention, "k_norm") else None
        self._gate: Operation = mlp.gate_proj.forward
        self._up: Operation = mlp.up_proj.forward
        self._down: Operation = mlp.down_proj.forward
        self._activate: Operation = _activation(mlp.act_fn)
        call = kind.call
        self._heads, self._kv_heads, self._width = (
            call.query.shape[1],
            call.key.shape[1],
            call.query.shape[-1],
        )

    def __call__(self, hidden: torch.Tensor, rotations: Sequence[Rotation], step: PackedStep) -> torch.Tensor:
        """The layer's output, which takes the place of its input, shape (tokens, hidden)."""
        attended = self._attend(self._before_attention(hidden), rotations, step)
        hidden.add_(self._after_attention(attended) if self._after_attention else attended)
        x = self._before_mlp(hidden)
        changed = self._down(self._activate(self._gate(x)).mul_(self._up(x)))
        return hidden.add_(self._after_mlp(changed) if self._after_mlp else changed)

    def _attend(self, x: torch.Tensor, rotations: Sequence[Rotation], step: PackedStep) -> torch.Tensor:
        tokens, kind = x.shape[0], self._kind
        q = self._q(x).view(tokens, self._heads, self._width)
        k = self._k(x).view(tokens, self._kv_heads, self._width)
        v = self._v(x).view(tokens, self._kv_heads, -1)
        if self._q_norm and self._k_norm:
            q, k = self._q_norm(q), self._k_norm(k)
        if kind.rotation is not None:
            rotation = rotations[kind.rotation]
            q, k = rotate(q, rotation), rotate(k, rotation)
        call = kind.call
        attended = step.attend_tokens(q, k, v, call.scale, softcap=call.softcap, sinks=call.sinks)
        return self._o(attended.view(tokens, -1))


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotates pairs of a head's numbers, each of the first half with that of the second (arXiv 2104.09864).

    Args:
        x: Shape (tokens, heads, width).
        rotation: Cosine and signed sine, shape (tokens, 1, width) each.
    """
    cos, sin = rotation
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)


def prepared(rotation: Rotation) -> Rotation:
    """From the rotary module's cosine and sine, shape (1, tokens, width), to those of `rotate`."""
    cos, sin = (one[0, :, None] for one in rotation)
    half = sin.shape[-1] // 2
    return cos, torch.cat((-sin[..., :half], sin[..., half:]), -1)


def _activation(module: Any) -> Operation:
    if isinstance(module, nn.SiLU | SiLUActivation):
        return lambda x: functional.silu(x, inplace=True)
    own: Operation = module.forward if isinstance(module, nn.Module) else module
    return own
