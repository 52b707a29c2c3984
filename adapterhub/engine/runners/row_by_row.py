"""Any decoder of transformers: each sequence of a step is a forward pass of its own, with the model's own attention.

It is the way for models whose attention or states the packed step does not know. It computes what `generate` computes,
and costs a forward pass for each sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from adapterhub.base.loading import Base
from adapterhub.engine.runner import Proof, ScheduledSequence
from adapterhub.engine.runners.row_forward import TRIAL_TOKENS, Continuation, RowForward
from adapterhub.engine.runners.row_slots import NoPromptCache, RowSlot, RowSlotCache
from adapterhub.errors import EngineError
from adapterhub.lora.delta import ModuleDelta
from adapterhub.lora.mapping import OneAdapterMapping
from adapterhub.lora.model_manager import LoraModelManager
from adapterhub.lora.slot_copies import SlotCopies

_TRIAL_TEXT = (
    "The library keeps the tools that read, sort and print the names of 12 rivers, in any order. " * 4
)


class RowRunner:
    """Runs steps on a base, sequence by sequence; see `Runner`.

    Making one runs a few forward passes, to find out how the model continues a sequence; they are also what makes
    bitsandbytes pack its weights, see `PackedRunner`.

    Args:
        base: From `load_base`; the runner wraps its layers and owns it from then on.
        max_loras: Number of LoRA slots.

    Raises:
        EngineError: The model is no decoder, or `generate` cannot run it.
    """

    has_graphs = False
    name = "row by row"
    forward = "transformers"
    proof: Proof | None = None

    def __init__(self, base: Base, *, max_loras: int) -> None:
        self._base, self._device = base, base.device
        self._forward = RowForward(base.model)
        try:
            self._continued = self._forward.measure(_trial_tokens(base), rounding=_rounding(base))
        except EngineError as error:
            message = f"A {type(base.model).__name__} cannot be served row by row: {error.message}."
            raise EngineError(message, hint="Choose a causal language model as base.") from error
        self._lora = LoraModelManager(
            base.model, slots=max_loras, dtype=base.compute_dtype, copies=SlotCopies(base.device)
        )

    @property
    def continuation(self) -> Continuation:
        """What the model can compute on top of a sequence's cache."""
        return self._continued.how

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the adapters in LoRA slots."""
        return self._lora.bytes

    def make_caches(self, max_bytes: int) -> tuple[RowSlotCache, NoPromptCache]:
        """Makes the room for sequences; see `Runner.make_caches`."""
        return RowSlotCache(self._continued, max_bytes), NoPromptCache()

    def load_adapter(self, slot: int, deltas: Mapping[str, ModuleDelta]) -> None:
        """Puts the weights of an adapter into a LoRA slot; see `Runner.load_adapter`."""
        self._lora.load(slot, deltas)

    def clear_adapter(self, slot: int) -> None:
        """Empties a LoRA slot; see `Runner.clear_adapter`."""
        self._lora.clear(slot)

    def unwrap(self) -> None:
        """Empties all LoRA slots, frees their memory, and leaves no layer of the model wrapped."""
        self._lora.unwrap()

    def release(self) -> None:
        """Gives the model back as it was; the runner is of no use afterwards."""
        self.unwrap()

    def step(self, sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Computes the next tokens of some sequences; see `Runner.step`."""
        rows = [self._row(one) for one in sequences]
        wanted = [row for row, one in zip(rows, sequences, strict=True) if one.needs_any_logits]
        logits = self._together(wanted)
        for one in sequences:
            one.kv_slot.token_ids += one.token_ids
        return logits

    def score(
        self, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], lora_slot: int | None
    ) -> torch.Tensor:
        """Computes logits within whole sequences; see `ScoringRunner.score`."""
        rows = []
        for token_ids, wanted in zip(sequences, positions, strict=True):
            if wanted:
                kept = len(token_ids) - wanted[0]
                with self._lora.using(self._mapping(lora_slot)):
                    logits, _ = self._forward(token_ids, {}, 0, logits=kept, use_cache=False)
                rows.append(logits[torch.tensor(wanted, device=logits.device) - wanted[0]])
        return self._together(rows)

    def _row(self, one: ScheduledSequence) -> torch.Tensor:
        """The logits that are needed of a sequence; it may be more."""
        slot: RowSlot = one.kv_slot
        how, count = self._continued.how, len(one.logit_positions)
        is_continued = one.needs_logits or how is Continuation.CHUNKS
        if not is_continued and not count:
            return self._together([])  # computed with the last chunk of the prompt
        if count <= 1 and (logits := slot.logits_of(one.token_ids)) is not None:
            return logits
        state, computed = slot.take_state()
        token_ids = [*slot.token_ids, *one.token_ids]
        with self._lora.using(self._mapping(one.lora_slot)):
            logits, state = self._forward(
                token_ids,
                state,
                computed,
                logits=max(1, count),
                use_cache=is_continued and how is not Continuation.NOTHING,
            )
        slot.put_state(state, one.token_ids, logits[-1:].clone() if count > 1 else logits)
        return logits

    def _mapping(self, lora_slot: int | None) -> OneAdapterMapping | None:
        return None if lora_slot is None else OneAdapterMapping(lora_slot, device=self._device)

    def _together(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([*rows]) if rows else torch.empty(0, self._base.vocabulary_size, device=self._device)


def _trial_tokens(base: Base) -> list[int]:
    """A text in the base's own tokens; the first ones of its vocabulary if its tokenizer knows few of the letters."""
    token_ids = [*base.tokenizer.encode(_TRIAL_TEXT, add_special_tokens=False), *range(TRIAL_TOKENS)]
    return token_ids[: min(TRIAL_TOKENS, base.context_length)]


def _rounding(base: Base) -> float | None:
    """By how much the logits of a text may differ when it is computed in pieces; see `RowForward.measure`."""
    return None if base.quantization == "int8" else max(1e-4, 25 * torch.finfo(base.matmul_dtype).eps)
