"""Runs the stateful layers of a hybrid model on a packed step.

Such a layer computes a whole sequence from the state that it left, so it cannot treat the tokens of a step alike. It is
called once for all sequences that decode, as a batch of one token each with their states gathered from their slots,
and once for each prefill chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from adapterhub.engine.kv.packed_call import QuerySpan
from adapterhub.engine.kv.stateful_layers import StatefulLayer, is_of_tokens
from adapterhub.engine.kv.states import StateBatch
from adapterhub.errors import EngineError
from adapterhub.lora.mapping import LoraMapping, OneAdapterMapping
from adapterhub.lora.model_manager import LoraModelManager

MakeMapping = Callable[[Sequence[tuple[int | None, int]]], LoraMapping]
"""The mapping of tokens, given (LoRA slot, number of tokens) of sequences sorted by slot."""


class RecurrentLayers:
    """The stateful layers of a model, which it calls in place of their own `forward`.

    Args:
        layers: From `find_stateful_layers`.
        lora: The adapters of the model; each call of a layer gets the mapping of its own tokens.
        make_mapping: Makes those mappings.
        device: The device of the states.
    """

    def __init__(
        self,
        layers: Sequence[StatefulLayer],
        lora: LoraModelManager,
        make_mapping: MakeMapping,
        device: torch.device,
    ) -> None:
        self._lora, self._make_mapping, self._device = lora, make_mapping, device
        self._groups: list[_Group] = []
        self._num_tokens = 0
        self._uncommitted: list[_Group] = []
        self._own_forwards = [(layer.module, vars(layer.module).get("forward")) for layer in layers]
        for layer in layers:
            layer.module.forward = partial(self._forward, layer, layer.module.forward)

    def restore(self) -> None:
        """Gives the layers their own `forward` back."""
        for module, forward in self._own_forwards:
            if forward is None:
                del module.forward
            else:  # accelerate's hooks had replaced it before
                module.forward = forward

    def forget(self) -> None:
        """Drops what the last step computed, and with it the last reference to its slots, which may not go on."""
        self._uncommitted = []

    @contextmanager
    def stepping(self, spans: Sequence[QuerySpan], lora_slots: Sequence[int | None]) -> Iterator[None]:
        """Computes the sequences of a step in the forward pass within the context.

        Args:
            spans: The tokens of each sequence, in the order of the step.
            lora_slots: The LoRA slot of each sequence, sorted; None for the base.
        """
        self._commit()
        self._groups = self._make_groups(spans, lora_slots)
        self._num_tokens = sum(span.count for span in spans)
        try:
            yield
            self._uncommitted = self._groups
        finally:
            self._groups = []

    def _commit(self) -> None:
        """Writes the states of the last step; see `StateBatch.commit`. After an exception it can be tried again."""
        for group in self._uncommitted:
            group.states.commit()
        self._uncommitted = []

    def _make_groups(self, spans: Sequence[QuerySpan], lora_slots: Sequence[int | None]) -> list[_Group]:
        decoding, groups = [], []
        for span, lora_slot in zip(spans, lora_slots, strict=True):
            if span.count == 1 and span.kv_slot.length:
                decoding.append((span, lora_slot))
            else:
                groups.append([(span, lora_slot)])
        return [
            _Group([span for span, _ in one], [slot for _, slot in one], self._make_mapping, self._device)
            for one in (decoding, *groups)
            if one
        ]

    def _forward(self, layer: StatefulLayer, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a layer's module computes in place of its own `forward`."""
        if not self._groups:
            raise EngineError("The base was called outside its engine, which owns it.")
        arguments = layer.named(args, kwargs)
        outputs = [self._run(layer, forward, group, arguments) for group in self._groups]
        return _join(self._groups, outputs, self._num_tokens)

    def _run(
        self,
        layer: StatefulLayer,
        forward: Callable[..., Any],
        group: _Group,
        arguments: Mapping[str, Any],
    ) -> Any:
        """The layer's output for one group, whose new states wait for `_commit`."""
        states = {} if group.states.is_empty else {index: group.states.read(index) for index in layer.states}
        cache = layer.make_cache(states)
        one_by_one = states and not layer.continues_chunks
        outputs = []
        for select in group.calls(one_by_one=bool(one_by_one)):
            selected = {
                name: select(value) if is_of_tokens(value, self._num_tokens) else value
                for name, value in arguments.items()
            }
            with self._lora.using(group.mapping):
                outputs.append(forward(**selected, **{layer.cache_argument: cache}))
        for index, computed in layer.states_of(cache).items():
            group.states.keep(index, computed)
        return outputs[0] if len(outputs) == 1 else _concatenate(outputs)


class _Group:
    """Sequences that a layer computes in one call: those that decode, or one with a prefill chunk.

    Attributes:
        states: Their states.
        mapping: Their adapters; None for the base alone.
    """

    def __init__(
        self,
        spans: Sequence[QuerySpan],
        lora_slots: Sequence[int | None],
        make_mapping: MakeMapping,
        device: torch.device,
    ) -> None:
        counts = [span.count for span in spans]
        self.states = StateBatch([span.kv_slot for span in spans], counts, device)
        self._start, self._count = spans[0].start, counts[0]
        self._rows: torch.Tensor | None = None
        self.mapping: LoraMapping | None = None
        if self._count == 1:
            self._rows = torch.tensor([span.start for span in spans], device=device)
            self.mapping = make_mapping(list(zip(lora_slots, counts, strict=True)))
        elif lora_slots[0] is not None:
            self.mapping = OneAdapterMapping(lora_slots[0], device=device)

    def calls(self, *, one_by_one: bool) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """How to select the tokens of each call, as (sequences, tokens, ...)."""
        if not one_by_one or self._rows is not None:
            yield self.select
            return
        for position in range(self._start, self._start + self._count):
            yield partial(_token, position=position)

    def select(self, packed: torch.Tensor) -> torch.Tensor:
        """From (1, all tokens, ...) to (sequences, tokens, ...)."""
        if self._rows is None:
            return packed[:, self._start : self._start + self._count]
        return packed[0].index_select(0, self._rows)[:, None]

    def write(self, output: torch.Tensor, packed: torch.Tensor) -> None:
        """The inverse of `select`: writes an output into that of all tokens."""
        if self._rows is None:
            packed[:, self._start : self._start + self._count] = output
        else:
            packed[0].index_copy_(0, self._rows, output[:, 0])


def _token(packed: torch.Tensor, position: int) -> torch.Tensor:
    return packed[:, position : position + 1]


def _join(groups: Sequence[_Group], outputs: Sequence[Any], num_tokens: int) -> Any:
    """The output of a layer for all tokens, from those of its groups."""
    if isinstance(outputs[0], tuple):
        return tuple(_join(groups, parts, num_tokens) for parts in zip(*outputs, strict=True))
    packed = outputs[0].new_empty(1, num_tokens, *outputs[0].shape[2:])
    for group, output in zip(groups, outputs, strict=True):
        group.write(output, packed)
    return packed


def _concatenate(outputs: Sequence[Any]) -> Any:
    """The output of successive tokens of one sequence."""
    if isinstance(outputs[0], tuple):
        return tuple(_concatenate(parts) for parts in zip(*outputs, strict=True))
    return torch.cat(list(outputs), dim=1)
