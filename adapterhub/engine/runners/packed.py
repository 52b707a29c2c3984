"""One step: a forward pass of the base over tokens of many sequences, each with its own adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from adapterhub.base.loading import Base
from adapterhub.engine.kv.attention import PackedAttention
from adapterhub.engine.kv.cache import MIN_SLOT_TOKENS, KVCache
from adapterhub.engine.kv.decode_kernel import DecodeKernel
from adapterhub.engine.kv.packed_call import QuerySpan
from adapterhub.engine.kv.packed_step import AttentionMetadata
from adapterhub.engine.kv.prefix_cache import PrefixCache
from adapterhub.engine.kv.probing import AttentionProbe
from adapterhub.engine.kv.recurrent import RecurrentLayers
from adapterhub.engine.kv.shape import KVShape
from adapterhub.engine.kv.stateful_layers import find_stateful_layers, num_attention_layers
from adapterhub.engine.kv.static_decode import DeviceTokens
from adapterhub.engine.models.finding import find_llama
from adapterhub.engine.models.interface import ModelForward
from adapterhub.engine.models.llama import LlamaForward
from adapterhub.engine.models.transformers import TransformersForward
from adapterhub.engine.runner import PROMPT_CACHE_SHARE, Proof, ScheduledSequence
from adapterhub.engine.runners.cuda_graphs import DecodeGraphs, MakeGraph
from adapterhub.errors import EngineError
from adapterhub.lora.delta import ModuleDelta
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.model_manager import LoraModelManager
from adapterhub.lora.slot_copies import SlotCopies

_TOLERANCES = {torch.float32: 1e-5, torch.float16: 6e-3, torch.bfloat16: 0.05}
"""By how much a layer's numbers may differ by rounding, relative to their size, by the dtype of activations."""
_BFLOAT16_PRODUCTS_TOLERANCE = 5e-3
"""The same of float32 that is rounded to bfloat16 in products alone: few inputs are rounded apart."""


class PackedRunner:
    """Runs steps on a base; see `Runner`.

    Making one runs a forward pass of one token. bitsandbytes packs 4-bit weights in place at the first forward
    pass; after this one the weights never change, so an adapter with DoRA can be loaded, which reads them, while
    another thread steps.

    Args:
        base: From `load_base`; the runner replaces its attention, wraps its layers and owns it from then on.
        max_loras: Number of LoRA slots.
        native: Compute a model that has Llama's structure by `LlamaForward`, and not by transformers.
        make_graph: Captures steps that decode; None computes every step anew.

    Raises:
        EngineError: A part of its model is not supported; the model has its own attention then.
    """

    name = "packed"
    proof: Proof | None = None

    def __init__(
        self, base: Base, *, max_loras: int, native: bool = True, make_graph: MakeGraph | None = None
    ) -> None:
        self._base, self._device = base, base.device
        layers, states = find_stateful_layers(base.model, self._device)
        self._attention = PackedAttention(base.model)
        self._lora = LoraModelManager(
            base.model, slots=max_loras, dtype=base.compute_dtype, copies=SlotCopies(base.device)
        )
        self._transformers = TransformersForward(base.model, self._attention)
        self._native: LlamaForward | None = None
        self._bound = self._lora.version
        try:
            probe = self._probe()
            if native:
                self._native = find_llama(base.model, self._transformers, layer_tolerance(base))
            # All that may raise is within: the model gets its own attention back then.
            self._decode_kernel = (
                DecodeKernel.find(self._device, base.compute_dtype) if probe.layers else None
            )
        except BaseException:
            self._attention.undo()
            raise
        self._attention_layers = probe.layers
        self._recurrent = RecurrentLayers(layers, self._lora, self._mapping, self._device) if layers else None
        self._kv_shape = KVShape(tuple(probe.shapes), base.compute_dtype, self._device, states)
        self._graphs: DecodeGraphs | None = None
        if make_graph and not layers:  # layers with states look up their sequences in Python
            self._graphs = DecodeGraphs(
                make_graph, self._bound_forward, self._lora, self._attention_layers, base.compute_dtype
            )

    @property
    def forward(self) -> str:
        """How it computes a forward pass; see `Runner.forward`."""
        return (self._native or self._transformers).name

    @property
    def has_graphs(self) -> bool:
        """Whether steps that decode are captured in graphs."""
        return self._graphs is not None and self._graphs.works

    @property
    def kv_shape(self) -> KVShape:
        """The shape of one token's keys and values."""
        return self._kv_shape

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the adapters in LoRA slots."""
        return self._lora.bytes

    def make_caches(self, max_bytes: int) -> tuple[KVCache, PrefixCache]:
        """Makes the caches of keys and values; see `Runner.make_caches`."""
        tokens = max_bytes // self._kv_shape.unit_bytes
        # The states of a prompt are those of its end, so a part of it cannot be continued.
        prefix_tokens = 0 if self._kv_shape.states else tokens // PROMPT_CACHE_SHARE
        cache = KVCache(self._kv_shape, tokens - prefix_tokens)
        return cache, PrefixCache(cache, prefix_tokens)

    def load_adapter(self, slot: int, deltas: Mapping[str, ModuleDelta]) -> None:
        """Puts the weights of an adapter into a LoRA slot; see `Runner.load_adapter`."""
        self._lora.load(slot, deltas)

    def clear_adapter(self, slot: int) -> None:
        """Empties a LoRA slot; see `Runner.clear_adapter`."""
        self._lora.clear(slot)

    def unwrap(self) -> None:
        """Empties all LoRA slots, frees their memory, and leaves no layer wrapped; no sequence may go on."""
        self._lora.unwrap()
        if self._graphs:
            self._graphs.clear()
        if self._recurrent:
            self._recurrent.forget()

    def release(self) -> None:
        """Gives the model back as it was; the runner is of no use afterwards."""
        self.unwrap()
        self._attention.undo()
        if self._recurrent:
            self._recurrent.restore()

    def step(self, sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Computes the next tokens of some sequences; see `Runner.step`."""
        order = _order(sequences)
        ordered = [sequences[index] for index in order]
        logits = self._graphs.step(ordered) if self._graphs else None
        if logits is None:
            logits = self._forward(ordered, [one.logit_positions for one in ordered])
        return _after_step(sequences, order, logits)

    def step_ahead(
        self, sequences: Sequence[ScheduledSequence], argmax: torch.Tensor, rows: Sequence[int]
    ) -> torch.Tensor | None:
        """Computes a step with tokens that the last one computes; see `AheadRunner.step_ahead`."""
        if self._graphs is None:  # elsewhere the host waits for the device anyway, to copy what a step needs
            return None
        order = _order(sequences)
        tokens = DeviceTokens(argmax, [rows[index] for index in order])
        logits = self._graphs.step([sequences[index] for index in order], tokens)
        return None if logits is None else _after_step(sequences, order, logits)

    def score(
        self, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], lora_slot: int | None
    ) -> torch.Tensor:
        """Computes logits within whole sequences, in one forward pass; see `ScoringRunner.score`."""
        room = sum(max(MIN_SLOT_TOKENS, 2 * len(one)) + self._kv_shape.units_per_slot for one in sequences)
        cache = KVCache(self._kv_shape, 2 * room)  # slots are powers of two, and pools grow twofold
        scheduled = []
        for token_ids in sequences:
            slot = cache.allocate(len(token_ids))
            if slot is None:
                raise EngineError("The KV cache for an evaluation is too small.")
            scheduled.append(ScheduledSequence(slot, token_ids, lora_slot, needs_logits=True))
        logits = self._forward(scheduled, positions)
        if self._recurrent:
            self._recurrent.forget()
        return logits

    @torch.inference_mode()
    def _forward(
        self, sequences: Sequence[ScheduledSequence], positions_kept: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """The logits at some positions among the tokens of each sequence, sequence after sequence."""
        device = self._device
        spans, logit_indices, start = [], [], 0
        for sequence, kept in zip(sequences, positions_kept, strict=True):
            spans.append(QuerySpan(sequence.kv_slot, start, len(sequence.token_ids)))
            logit_indices += [start + position for position in kept]
            start += len(sequence.token_ids)
        token_ids = [token_id for sequence in sequences for token_id in sequence.token_ids]
        positions = [
            sequence.kv_slot.length + offset
            for sequence in sequences
            for offset in range(len(sequence.token_ids))
        ]
        step = AttentionMetadata(
            spans, device, self._base.compute_dtype, self._attention_layers, self._decode_kernel
        )
        mapping = self._mapping([(one.lora_slot, len(one.token_ids)) for one in sequences])
        output_mapping = self._mapping(
            [(one.lora_slot, len(kept)) for one, kept in zip(sequences, positions_kept, strict=True) if kept]
        )
        recurrent: AbstractContextManager[None] = nullcontext()
        if self._recurrent:
            recurrent = self._recurrent.stepping(spans, [one.lora_slot for one in sequences])
        with recurrent, self._lora.using(mapping, output_mapping):
            return self._run_model(token_ids, positions, logit_indices, step)

    @torch.inference_mode()
    def _run_model(
        self, token_ids: list[int], positions: list[int], logit_indices: list[int], step: AttentionMetadata
    ) -> torch.Tensor:
        """One forward pass; the logits at some of its tokens."""
        tokens, places, kept = (
            torch.tensor(values, dtype=torch.long, device=self._device)
            for values in (token_ids, positions, logit_indices)
        )
        return self._bound_forward()(tokens, places, kept, step)

    def _bound_forward(self) -> ModelForward:
        """The forward pass, bound to the modules of the model as they are now."""
        if self._native is None:
            return self._transformers
        if self._bound != self._lora.version:
            self._native.bind()
            self._bound = self._lora.version
        return self._native

    def _mapping(self, counts: Sequence[tuple[int | None, int]]) -> LoraMapping:
        """The LoRA slot of each token, given (slot, number of tokens) of sequences sorted by slot."""
        total: dict[int | None, int] = {}
        for slot, count in counts:
            total[slot] = total.get(slot, 0) + count
        base = total.pop(None, 0)
        runs = [(slot, count) for slot, count in total.items() if slot is not None]
        return LoraMapping(runs, num_base_tokens=base, device=self._device)

    @torch.inference_mode()
    def _probe(self) -> AttentionProbe:
        """Runs one token, and finds what the model's attention is like."""
        model, probe = self._base.model, AttentionProbe()
        first = torch.zeros(1, dtype=torch.long, device=self._device)
        with self._attention.noting_masks():
            self._transformers(first, first, first, probe)
        probe.check_cache(model.config)
        attending, num_layers = len(probe.layers), num_attention_layers(model)
        if attending < num_layers:
            raise EngineError(
                f"A {type(model).__name__} cannot be served in a packed batch: only {attending} of its {num_layers} "
                "attention layers go through transformers' AttentionInterface.",
            )
        return probe


def layer_tolerance(base: Base) -> float:
    """By how much a layer's numbers may differ by rounding, relative to their size."""
    if base.compute_dtype == torch.float32 and base.matmul_dtype == torch.bfloat16:
        return _BFLOAT16_PRODUCTS_TOLERANCE
    return _TOLERANCES[base.compute_dtype]


def _order(sequences: Sequence[ScheduledSequence]) -> list[int]:
    """The order in which a forward pass takes sequences."""
    return sorted(range(len(sequences)), key=lambda index: _sort_key(sequences[index]))


def _after_step(
    sequences: Sequence[ScheduledSequence], order: Sequence[int], logits: torch.Tensor
) -> torch.Tensor:
    """A step's logits in the order of the sequences, whose KV slots are lengthened once there are these."""
    logits = _in_order_of(sequences, order, logits)
    for sequence in sequences:
        sequence.kv_slot.length += len(sequence.token_ids)
    return logits


def _in_order_of(
    sequences: Sequence[ScheduledSequence], order: Sequence[int], logits: torch.Tensor
) -> torch.Tensor:
    rows = [index for index in order for _ in sequences[index].logit_positions]  # whose each of them is
    if rows == sorted(rows):
        return logits
    restore = torch.tensor(sorted(range(len(rows)), key=rows.__getitem__))
    if logits.device.type == "cuda":  # from pinned memory, so that the host does not wait for the step
        restore = restore.pin_memory().to(logits.device, non_blocking=True)
    return logits[restore]


def _sort_key(sequence: ScheduledSequence) -> tuple[int, int]:
    """Sequences of one LoRA slot are adjacent, those of the base first, each group in order of KV slots."""
    return -1 if sequence.lora_slot is None else sequence.lora_slot, sequence.kv_slot.index
