"""One step: a forward pass of the base over tokens of many sequences, each with its own adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from adapterhub.base.loading import Base
from adapterhub.engine.kv.attention import AttentionMetadata, QuerySpan, use_packed_attention
from adapterhub.engine.kv.cache import MIN_SLOT_TOKENS, KVCache, KVShape
from adapterhub.engine.kv.prefix_cache import PrefixCache
from adapterhub.engine.runner import PROMPT_CACHE_SHARE, ScheduledSequence
from adapterhub.errors import EngineError
from adapterhub.lora.delta import ModuleDelta
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.model_manager import LoraModelManager


class PackedRunner:
    """Runs steps on a base; see `Runner`.

    Making one runs a forward pass of one token. bitsandbytes packs 4-bit weights in place at the first forward
    pass; after this one the weights never change, so an adapter with DoRA can be loaded, which reads them, while
    another thread steps.

    Args:
        base: From `load_base`; the runner replaces its attention, wraps its layers and owns it from then on.
        max_loras: Number of LoRA slots.

    Raises:
        EngineError: Another engine owns the base, or a part of its model is not supported.
    """

    def __init__(self, base: Base, *, max_loras: int) -> None:
        base.claim()
        self._base, self._device = base, base.device
        use_packed_attention(base.model)
        self._lora = LoraModelManager(base.model, slots=max_loras, dtype=base.compute_dtype)
        self._kv_shape = KVShape.of(base.model.config.get_text_config(), base.compute_dtype, self._device)
        self._warm_up()

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
        tokens = max_bytes // self._kv_shape.bytes_per_token
        prefix_tokens = tokens // PROMPT_CACHE_SHARE
        cache = KVCache(self._kv_shape, tokens - prefix_tokens)
        return cache, PrefixCache(cache, prefix_tokens)

    def load_adapter(self, slot: int, deltas: Mapping[str, ModuleDelta]) -> None:
        """Puts the weights of an adapter into a LoRA slot; see `Runner.load_adapter`."""
        self._lora.load(slot, deltas)

    def clear_adapter(self, slot: int) -> None:
        """Empties a LoRA slot; see `Runner.clear_adapter`."""
        self._lora.clear(slot)

    def step(self, sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Computes the next tokens of some sequences; see `Runner.step`."""
        order = sorted(range(len(sequences)), key=lambda index: _sort_key(sequences[index]))
        ordered = [sequences[index] for index in order]
        logits = self._forward(ordered, [(len(one.token_ids) - 1,) * one.needs_logits for one in ordered])
        for sequence in sequences:
            sequence.kv_slot.length += len(sequence.token_ids)
        with_logits = [index for index in order if sequences[index].needs_logits]
        if with_logits == sorted(with_logits):
            return logits
        restore = sorted(range(len(with_logits)), key=with_logits.__getitem__)
        return logits[torch.tensor(restore, device=logits.device)]

    def score(
        self, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], lora_slot: int | None
    ) -> torch.Tensor:
        """Computes logits within whole sequences, in one forward pass; for evaluation, between steps.

        Args:
            sequences: The token ids of each.
            positions: The positions in each, from 0 and rising, whose logits are computed.
            lora_slot: The LoRA slot of the adapter of all of them; None for the base.

        Returns:
            The logits at those positions, sequence after sequence, shape (positions, vocabulary).
        """
        room = sum(max(MIN_SLOT_TOKENS, 2 * len(one)) for one in sequences)
        cache = KVCache(self._kv_shape, 2 * room)  # slots are powers of two, and pools grow twofold
        scheduled = []
        for token_ids in sequences:
            slot = cache.allocate(len(token_ids))
            if slot is None:
                raise EngineError("The KV cache for an evaluation is too small.")
            scheduled.append(ScheduledSequence(slot, token_ids, lora_slot, needs_logits=True))
        return self._forward(scheduled, positions)

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
        metadata = AttentionMetadata(spans, device, self._base.compute_dtype)
        mapping = self._mapping([(one.lora_slot, len(one.token_ids)) for one in sequences])
        output_mapping = self._mapping(
            [(one.lora_slot, len(kept)) for one, kept in zip(sequences, positions_kept, strict=True) if kept]
        )
        with self._lora.using(mapping, output_mapping):
            output = self._base.model(
                input_ids=torch.tensor([token_ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(logit_indices, dtype=torch.long, device=device),
                attn_metadata=metadata,
            )
        if len(metadata.computed_layers) != self._kv_shape.num_layers:
            raise EngineError(
                f"A {type(self._base.model).__name__} cannot be served: only {len(metadata.computed_layers)} of its "
                f"{self._kv_shape.num_layers} layers are attention with a KV cache.",
                hint="Hybrid and recurrent models are not supported.",
            )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _mapping(self, counts: Sequence[tuple[int | None, int]]) -> LoraMapping:
        """The LoRA slot of each token, given (slot, number of tokens) of sequences sorted by slot."""
        total: dict[int | None, int] = {}
        for slot, count in counts:
            total[slot] = total.get(slot, 0) + count
        base = total.pop(None, 0)
        runs = [(slot, count) for slot, count in total.items() if slot is not None]
        return LoraMapping(runs, num_base_tokens=base, device=self._device)

    def _warm_up(self) -> None:
        slot = KVCache(self._kv_shape, 1).allocate(1)
        if slot is None:
            raise EngineError("An empty KV cache has no slot.")
        self._forward([ScheduledSequence(slot, [0], None, needs_logits=True)], [(0,)])


def _sort_key(sequence: ScheduledSequence) -> tuple[int, int]:
    """Sequences of one LoRA slot are adjacent, those of the base first, each group in order of KV slots."""
    return -1 if sequence.lora_slot is None else sequence.lora_slot, sequence.kv_slot.index
