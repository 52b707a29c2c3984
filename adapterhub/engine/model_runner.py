"""One forward pass of the base over a packed step: some tokens of many answers, each with its own adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adapterhub.base.loading import Base
from adapterhub.engine.kv.attention import AttentionMetadata, QuerySpan, use_packed_attention
from adapterhub.engine.kv.cache import KVShape, KVSlot
from adapterhub.errors import EngineError
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.model_manager import LoraModelManager


@dataclass(frozen=True)
class ScheduledSequence:
    """What one answer contributes to a step.

    Attributes:
        lane: Where its keys and values are; its length says how many tokens came before.
        tokens: The next token ids, at least one.
        slot: The slot of its adapter; None for the bare base.
        wanted: Whether logits of its last token are wanted.
    """

    lane: KVSlot
    tokens: Sequence[int]
    slot: int | None
    wanted: bool


class ModelRunner:
    """Runs steps on a base. Not thread-safe.

    Args:
        base: From `load_base`; the runner replaces its attention and wraps its layers, and is its only user.
        slots: How many adapters can be resident.
    """

    def __init__(self, base: Base, *, slots: int) -> None:
        self._base = base
        use_packed_attention(base.model)
        self.layers = LoraModelManager(base.model, slots=slots, dtype=base.compute_dtype)
        self.kv_shape = KVShape.of(base.model.config.get_text_config(), base.compute_dtype, base.device)

    def step(self, rows: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Computes the next tokens of some answers, and lengthens their lanes.

        An exception leaves every lane as long as it was, so the same step can be tried again.

        Args:
            rows: Each with a lane of its own.

        Returns:
            The logits of the last token of each row where they are wanted, shape (wanted rows, vocabulary).

        Raises:
            EngineError: The model keeps more of a text than keys and values.
        """
        order = sorted(range(len(rows)), key=lambda place: _place(rows[place]))
        logits = self._forward([rows[place] for place in order])
        for row in rows:
            row.lane.length += len(row.tokens)
        wanted = [place for place in order if rows[place].wanted]
        if wanted == sorted(wanted):
            return logits
        back = sorted(range(len(wanted)), key=wanted.__getitem__)
        return logits[torch.tensor(back, device=logits.device)]

    @torch.inference_mode()
    def _forward(self, rows: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Logits of shape (wanted rows, vocabulary)."""
        device = self._base.device
        spans, ends, start = [], [], 0
        for row in rows:
            spans.append(QuerySpan(row.lane, start, len(row.tokens)))
            start += len(row.tokens)
            if row.wanted:
                ends.append(start - 1)
        ids = [token for row in rows for token in row.tokens]
        places = [row.lane.length + offset for row in rows for offset in range(len(row.tokens))]
        step = AttentionMetadata(spans, device, self._base.compute_dtype)
        tokens = self._token_slots([(row.slot, len(row.tokens)) for row in rows])
        outputs = self._token_slots([(row.slot, 1) for row in rows if row.wanted])
        with self.layers.using(tokens, outputs):
            output = self._base.model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([places], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(ends, dtype=torch.long, device=device),
                attn_metadata=step,
            )
        if len(step.layers) != self.kv_shape.layers:
            raise EngineError(
                f"A {type(self._base.model).__name__} cannot be served: of its {self.kv_shape.layers} layers only "
                f"{len(step.layers)} keep what they know of a text as keys and values.",
                hint="Hybrid and recurrent models have no packed batches.",
            )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _token_slots(self, counts: Sequence[tuple[int | None, int]]) -> LoraMapping:
        """The slots of tokens that are in order of their slots, given how many each row has."""
        total: dict[int | None, int] = {}
        for slot, count in counts:
            total[slot] = total.get(slot, 0) + count
        base = total.pop(None, 0)
        runs = [(slot, count) for slot, count in total.items() if slot is not None]
        return LoraMapping(runs, num_base_tokens=base, device=self._base.device)


def _place(row: ScheduledSequence) -> tuple[int, int]:
    """Rows of one slot stand together, those of the bare base first, each in the order of their lanes."""
    return -1 if row.slot is None else row.slot, row.lane.index
