"""Attention over a packed step of many sequences, called by transformers' models in place of their own.

The tokens of a step are packed: ids of shape (1, tokens), sequence after sequence, most of them one token long (decode)
and some a chunk of a prompt (prefill). All other layers treat tokens alike, so only this module knows which sequence a
token belongs to. Sequences that decode are computed together, one call for each pool of KV slots; prefill chunks are
computed one by one.

It plugs into transformers' `AttentionInterface`, which passes the `AttentionMetadata` through the model as a keyword
argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from adapterhub.engine.kv.cache import KVSlot, KVSlotPool
from adapterhub.errors import EngineError

NAME = "adapterhub_packed"


@dataclass(frozen=True)
class QuerySpan:
    """The tokens of one sequence in a step.

    Attributes:
        kv_slot: Its keys and values; the length is that before the step.
        start: Index of its first token among the tokens of the step.
        count: Number of tokens.
    """

    kv_slot: KVSlot
    start: int
    count: int


class AttentionMetadata:
    """Which sequence each token of a step belongs to, and where its keys and values are.

    Args:
        spans: The tokens of each sequence.
        device: The device of the tokens.
        dtype: The dtype of keys and values.

    Attributes:
        computed_layers: Indices of the layers whose attention was computed here.
    """

    def __init__(self, spans: Sequence[QuerySpan], device: torch.device, dtype: torch.dtype) -> None:
        decoding: dict[KVSlotPool, list[QuerySpan]] = {}
        for span in spans:
            if span.count == 1:
                decoding.setdefault(span.kv_slot.pool, []).append(span)
        self.groups: list[_DecodeBatch | _PrefillChunk] = [
            _DecodeBatch(pool, of_pool, device, dtype) for pool, of_pool in decoding.items()
        ]
        self.groups += [_PrefillChunk(span, device, dtype) for span in spans if span.count > 1]
        self.computed_layers: set[int] = set()


@dataclass(frozen=True)
class _AttentionCall:
    """The inputs of one layer, packed tensors of shape (tokens, heads, head_dim), and where its output goes."""

    layer: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    out: torch.Tensor
    scale: float
    window: int | None


class _DecodeBatch:
    """Sequences of one pool that compute one token each."""

    def __init__(
        self, pool: KVSlotPool, spans: Sequence[QuerySpan], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._pool, self._device, self._dtype = pool, device, dtype
        spans = sorted(spans, key=lambda span: span.kv_slot.index)
        self._num_slots = spans[-1].kv_slot.index + 1
        # Slots without a token in this step are computed along, as if empty, and their output is left out.
        self._lengths = [0] * self._num_slots
        for span in spans:
            self._lengths[span.kv_slot.index] = span.kv_slot.length
        self._width = max(self._lengths) + 1
        self._all_slots = len(spans) == self._num_slots
        self._slot_indices = torch.tensor([span.kv_slot.index for span in spans], device=device)
        self._positions = torch.tensor([span.kv_slot.length for span in spans], device=device)
        starts = [span.start for span in spans]
        # Most steps have one pool with its slots in order: then nothing has to be gathered or scattered.
        self._in_order = self._all_slots and starts == list(range(starts[0], starts[0] + len(starts)))
        self._token_range = slice(starts[0], starts[0] + len(starts))
        self._token_indices = torch.tensor(starts, device=device)
        token_of_slot = dict.fromkeys(range(self._num_slots), starts[0])
        token_of_slot.update((span.kv_slot.index, span.start) for span in spans)
        self._token_of_slot = torch.tensor(list(token_of_slot.values()), device=device)
        self._masks: dict[int | None, torch.Tensor] = {}

    def attend(self, call: _AttentionCall) -> None:
        keys, values = self._pool.keys[call.layer], self._pool.values[call.layer]
        keys[self._slot_indices, :, self._positions] = self._select(call.k, self._token_indices)
        values[self._slot_indices, :, self._positions] = self._select(call.v, self._token_indices)
        # Query heads that share a key head take the dimension of query tokens: with one token for each sequence, and
        # so one mask, the result is the same, and no key is repeated.
        queries = self._select(call.q, self._token_of_slot)
        grouped = queries.reshape(self._num_slots, keys.shape[1], -1, keys.shape[-1])
        attended = scaled_dot_product_attention(
            grouped,
            keys[: self._num_slots, :, : self._width],
            values[: self._num_slots, :, : self._width],
            attn_mask=self._mask(call.window),
            scale=call.scale,
        ).reshape(self._num_slots, -1, keys.shape[-1])
        if self._in_order:
            call.out[self._token_range] = attended
        else:
            if not self._all_slots:
                attended = attended.index_select(0, self._slot_indices)
            call.out.index_copy_(0, self._token_indices, attended)

    def _select(self, tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return tensor[self._token_range] if self._in_order else tensor.index_select(0, indices)

    def _mask(self, window: int | None) -> torch.Tensor:
        """Zero where the token of a slot may look and minus infinity elsewhere, shape (slots, 1, 1, width)."""
        if window not in self._masks:
            positions = torch.arange(self._width, device=self._device)
            lengths = torch.tensor(self._lengths, device=self._device)[:, None]
            masked = positions > lengths
            if window is not None:
                masked |= positions <= lengths - window
            self._masks[window] = _additive_mask(masked, self._dtype)[:, None, None]
        return self._masks[window]


class _PrefillChunk:
    """Several tokens of the prompt of one sequence."""

    def __init__(self, span: QuerySpan, device: torch.device, dtype: torch.dtype) -> None:
        self._slot = span.kv_slot
        self._tokens = slice(span.start, span.start + span.count)
        self._past = span.kv_slot.length
        self._end = self._past + span.count
        self._device, self._dtype = device, dtype
        self._masks: dict[int | None, torch.Tensor] = {}

    def attend(self, call: _AttentionCall) -> None:
        keys = self._slot.pool.keys[call.layer][self._slot.index]
        values = self._slot.pool.values[call.layer][self._slot.index]
        keys[:, self._past : self._end] = call.k[self._tokens].transpose(0, 1)
        values[:, self._past : self._end] = call.v[self._tokens].transpose(0, 1)
        # Without earlier tokens or a window that matters, PyTorch's own causal mask is enough.
        is_causal = self._past == 0 and (call.window is None or call.window >= self._end)
        attended = scaled_dot_product_attention(
            call.q[self._tokens].transpose(0, 1)[None],
            keys[None, :, : self._end],
            values[None, :, : self._end],
            attn_mask=None if is_causal else self._mask(call.window),
            is_causal=is_causal,
            scale=call.scale,
            enable_gqa=call.q.shape[1] != keys.shape[0],
        )
        call.out[self._tokens] = attended[0].transpose(0, 1)

    def _mask(self, window: int | None) -> torch.Tensor:
        """Zero where a token may look and minus infinity elsewhere, shape (chunk, earlier tokens and chunk)."""
        if window not in self._masks:
            positions = torch.arange(self._end, device=self._device)
            queries = positions[self._past :, None]
            masked = positions > queries
            if window is not None:
                masked |= positions <= queries - window
            self._masks[window] = _additive_mask(masked, self._dtype)
        return self._masks[window]


def _additive_mask(masked: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask to add to scores: minus infinity where `masked`, else zero."""
    return torch.zeros(masked.shape, dtype=dtype, device=masked.device).masked_fill_(masked, -torch.inf)


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
    """Attention of one layer over a packed step; an attention function of transformers' `AttentionInterface`.

    Args:
        module: The attention layer; its `layer_idx` is its index.
        query: Shape (1, heads, tokens, head_dim).
        key: Shape (1, kv_heads, tokens, head_dim).
        value: Shape (1, kv_heads, tokens, head_dim).
        attention_mask: Not used; `attn_metadata` has what masks are made of.
        scaling: Factor of the scores; `head_dim ** -0.5` if not given.
        sliding_window: How many tokens a token attends to, itself included; None for all.
        attn_metadata: The sequences of the step.
        softcap: Not supported; see Raises.
        s_aux: Attention sinks; not supported, see Raises.

    Returns:
        Shape (1, tokens, heads, head_dim), and None for the attention weights.

    Raises:
        EngineError: The model soft-caps its scores or has attention sinks, or it was called without metadata.
    """
    if attn_metadata is None or softcap is not None or s_aux is not None:
        raise EngineError(
            "The base's attention cannot be computed by this engine: it soft-caps its scores or has attention sinks."
            if attn_metadata
            else "The base was called outside its engine, which owns it."
        )
    layer: int = module.layer_idx  # type: ignore[assignment]
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    attn_metadata.computed_layers.add(layer)
    out = q.new_empty(q.shape)
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    call = _AttentionCall(layer, q, k, v, out, scale, sliding_window)
    for group in attn_metadata.groups:
        group.attend(call)
    return out[None], None


def use_packed_attention(model: Any) -> Callable[[], None]:
    """Replaces the attention of a transformers model by `attend`.

    Returns:
        Puts the model's own attention back.

    Raises:
        EngineError: The model's attention cannot be replaced; it has its own then.
    """
    AttentionInterface.register(NAME, attend)
    configs = {
        id(config): config for module in model.modules() if (config := getattr(module, "config", None))
    }
    own = [(config, config._attn_implementation) for config in configs.values()]

    def restore() -> None:
        for config, implementation in own:
            config._attn_implementation_internal = implementation

    try:
        model.set_attn_implementation(NAME)
    except ValueError as error:
        restore()
        raise EngineError(
            f"A {type(model).__name__} cannot be served: its attention cannot be replaced ({error}).",
            hint="Models whose attention goes through transformers' AttentionInterface can.",
        ) from error
    return restore
