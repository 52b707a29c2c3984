"""Attention for a step of many answers, called by transformers' models in place of their own.

A step's tokens come packed: (1, tokens) ids, first to last answer, most of them one token long and some a part of a
prompt. Everything but attention treats tokens alone, so this is the only place that knows which answer a token is
of. Answers that decode are taken together, one call for each pool of lanes; parts of prompts one by one.

It plugs into transformers' `AttentionInterface`, which hands the step through the model as a keyword argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from adapterhub.engine.kv.cache import KVSlot, KVSlotPool
from adapterhub.errors import EngineError

NAME = "adapterhub_lanes"


@dataclass(frozen=True)
class QuerySpan:
    """The tokens of one answer in a step.

    Attributes:
        lane: Where its keys and values are.
        start: Its first token's place among the step's tokens.
        count: Number of tokens.
    """

    lane: KVSlot
    start: int
    count: int


class AttentionMetadata:
    """Whose tokens a step has, and where their keys and values go.

    Args:
        spans: The answers' tokens; their lanes' lengths are those before the step.
        device: Where the tokens are.
        dtype: Of the keys and values.
    """

    def __init__(self, spans: Sequence[QuerySpan], device: torch.device, dtype: torch.dtype) -> None:
        pools: dict[KVSlotPool, list[QuerySpan]] = {}
        for span in spans:
            if span.count == 1:
                pools.setdefault(span.lane.pool, []).append(span)
        self.parts: list[_Decoding | _Prompt] = [
            _Decoding(pool, own, device, dtype) for pool, own in pools.items()
        ]
        self.parts += [_Prompt(span, device, dtype) for span in spans if span.count > 1]
        self.layers: set[int] = set()  # those whose attention was computed


@dataclass(frozen=True)
class _Call:
    """What one layer asks: packed tensors of shape (tokens, heads, head_dim), and where the result goes."""

    layer: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    out: torch.Tensor
    scale: float
    window: int | None


class _Decoding:
    """Answers of one pool that get one token each."""

    def __init__(
        self, pool: KVSlotPool, spans: Sequence[QuerySpan], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._pool, self._device, self._dtype = pool, device, dtype
        spans = sorted(spans, key=lambda span: span.lane.index)
        self._used = spans[-1].lane.index + 1
        self._lengths = [0] * self._used  # of lanes that get no token: they are computed along, and left out
        for span in spans:
            self._lengths[span.lane.index] = span.lane.length
        self._width = max(self._lengths) + 1
        self._all = len(spans) == self._used
        self._lanes = torch.tensor([span.lane.index for span in spans], device=device)
        self._places = torch.tensor([span.lane.length for span in spans], device=device)
        starts = [span.start for span in spans]
        # Most steps have one pool, its lanes in order: then nothing has to be picked out or put back.
        self._in_order = self._all and starts == list(range(starts[0], starts[0] + len(starts)))
        self._range = slice(starts[0], starts[0] + len(starts))
        self._own = torch.tensor(starts, device=device)
        of_lane = dict.fromkeys(range(self._used), starts[0])
        of_lane.update((span.lane.index, span.start) for span in spans)
        self._tokens = torch.tensor(list(of_lane.values()), device=device)
        self._masks: dict[int | None, torch.Tensor] = {}

    def attend(self, call: _Call) -> None:
        keys, values = self._pool.keys[call.layer], self._pool.values[call.layer]
        keys[self._lanes, :, self._places] = self._pick(call.k, self._own)
        values[self._lanes, :, self._places] = self._pick(call.v, self._own)
        # Query heads that share a key head stand where further query tokens would: with one token each, and so one
        # mask, that is the same sum, and no key is repeated.
        grouped = self._pick(call.q, self._tokens).reshape(self._used, keys.shape[1], -1, keys.shape[-1])
        attended = scaled_dot_product_attention(
            grouped,
            keys[: self._used, :, : self._width],
            values[: self._used, :, : self._width],
            attn_mask=self._mask(call.window),
            scale=call.scale,
        ).reshape(self._used, -1, keys.shape[-1])
        if self._in_order:
            call.out[self._range] = attended
        else:
            call.out.index_copy_(
                0, self._own, attended if self._all else attended.index_select(0, self._lanes)
            )

    def _pick(self, tensor: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return tensor[self._range] if self._in_order else tensor.index_select(0, tokens)

    def _mask(self, window: int | None) -> torch.Tensor:
        """Zero where a lane's token may look and minus infinity elsewhere, shape (lanes, 1, 1, width)."""
        if window not in self._masks:
            places = torch.arange(self._width, device=self._device)
            lengths = torch.tensor(self._lengths, device=self._device)[:, None]
            hidden = places > lengths
            if window is not None:
                hidden |= places <= lengths - window
            self._masks[window] = _additive(hidden, self._dtype)[:, None, None]
        return self._masks[window]


class _Prompt:
    """Several tokens of one answer."""

    def __init__(self, span: QuerySpan, device: torch.device, dtype: torch.dtype) -> None:
        self._lane, self._start, self._count = span.lane, span.start, span.count
        self._past = span.lane.length
        self._device, self._dtype = device, dtype
        self._masks: dict[int | None, torch.Tensor] = {}

    def attend(self, call: _Call) -> None:
        own, end = slice(self._start, self._start + self._count), self._past + self._count
        keys = self._lane.pool.keys[call.layer][self._lane.index]
        values = self._lane.pool.values[call.layer][self._lane.index]
        keys[:, self._past : end] = call.k[own].transpose(0, 1)
        values[:, self._past : end] = call.v[own].transpose(0, 1)
        whole = self._past == 0 and (call.window is None or call.window >= end)
        attended = scaled_dot_product_attention(
            call.q[own].transpose(0, 1)[None],
            keys[None, :, :end],
            values[None, :, :end],
            attn_mask=None if whole else self._mask(call.window),
            is_causal=whole,
            scale=call.scale,
            enable_gqa=call.q.shape[1] != keys.shape[0],
        )
        call.out[own] = attended[0].transpose(0, 1)

    def _mask(self, window: int | None) -> torch.Tensor:
        """Zero where a token may look and minus infinity elsewhere, shape (tokens, past and tokens)."""
        if window not in self._masks:
            places = torch.arange(self._past + self._count, device=self._device)
            own = places[self._past :, None]
            hidden = places > own
            if window is not None:
                hidden |= places <= own - window
            self._masks[window] = _additive(hidden, self._dtype)
        return self._masks[window]


def _additive(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask to be added to scores: minus infinity where something is hidden, else zero."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    attn_metadata: AttentionMetadata | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer over a packed step, in the form that transformers' models call.

    Args:
        module: The attention layer; its `layer_idx` says which.
        query: Shape (1, heads, tokens, head_dim); `key` and `value` the same with the key heads.
        key: See `query`.
        value: See `query`.
        attention_mask: Not used: a lane knows what its answer may look at.
        scaling: Of the scores; one over the root of head_dim if not given.
        sliding_window: How many tokens back a token looks, itself included; None for all.
        attn_metadata: The step.
        softcap: Refused; see Raises.
        s_aux: Refused; see Raises.

    Returns:
        Shape (1, tokens, heads, head_dim), and None for the attention weights.

    Raises:
        EngineError: The model needs a kind of attention that this engine has not, or it was called without a step.
    """
    if attn_metadata is None or softcap is not None or s_aux is not None:
        raise EngineError(
            "The base's attention cannot be computed by this engine: it caps its scores or has sink tokens."
            if attn_metadata
            else "The base was called outside its engine, which owns it."
        )
    layer: int = module.layer_idx  # type: ignore[assignment]
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    attn_metadata.layers.add(layer)
    out = q.new_empty(q.shape)
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    call = _Call(layer, q, k, v, out, scale, sliding_window)
    for part in attn_metadata.parts:
        part.attend(call)
    return out[None], None


def use_packed_attention(model: Any) -> None:
    """Makes a transformers model compute its attention here.

    Raises:
        EngineError: The model's attention cannot be replaced.
    """
    AttentionInterface.register(NAME, attend)
    try:
        model.set_attn_implementation(NAME)
    except ValueError as error:
        raise EngineError(
            f"A {type(model).__name__} cannot be served: its attention cannot be replaced ({error}).",
            hint="Models whose attention goes through transformers' AttentionInterface can.",
        ) from error
