"""One forward pass of the base over a packed step: some tokens of many answers, each with its own adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adapterhub.engine.attention import LaneStep, Span, use_lanes
from adapterhub.engine.kv_cache import KVShape, Lane
from adapterhub.errors import EngineError
from adapterhub.lora.layers import AdapterLayers
from adapterhub.lora.slots import TokenSlots
from adapterhub.models import Base


@dataclass(frozen=True)
class StepRow:
    """What one answer contributes to a step.

    Attributes:
        lane: Where its keys and values are; its length says how many tokens came before.
        tokens: The next token ids, at least one.
        slot: The slot of its adapter; None for the bare base.
        wanted: Whether logits of its last token are wanted.
    """

    lane: Lane
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
        use_lanes(base.model)
        self.layers = AdapterLayers(base.model, slots=slots, dtype=base.compute_dtype)
        self.kv_shape = KVShape.of(base.model.config.get_text_config(), base.compute_dtype, base.device)

    def step(self, rows: Sequence[StepRow]) -> torch.Tensor:
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
    def _forward(self, rows: Sequence[StepRow]) -> torch.Tensor:
        """Logits of shape (wanted rows, vocabulary)."""
        device = self._base.device
        spans, ends, start = [], [], 0
        for row in rows:
            spans.append(Span(row.lane, start, len(row.tokens)))
            start += len(row.tokens)
            if row.wanted:
                ends.append(start - 1)
        ids = [token for row in rows for token in row.tokens]
        places = [row.lane.length + offset for row in rows for offset in range(len(row.tokens))]
        step = LaneStep(spans, device, self._base.compute_dtype)
        tokens = self._token_slots([(row.slot, len(row.tokens)) for row in rows])
        outputs = self._token_slots([(row.slot, 1) for row in rows if row.wanted])
        with self.layers.using(tokens, outputs):
            output = self._base.model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([places], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(ends, dtype=torch.long, device=device),
                lane_step=step,
            )
        if len(step.layers) != self.kv_shape.layers:
            raise EngineError(
                f"A {type(self._base.model).__name__} cannot be served: of its {self.kv_shape.layers} layers only "
                f"{len(step.layers)} keep what they know of a text as keys and values.",
                hint="Hybrid and recurrent models have no packed batches.",
            )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _token_slots(self, counts: Sequence[tuple[int | None, int]]) -> TokenSlots:
        """The slots of tokens that are in order of their slots, given how many each row has."""
        total: dict[int | None, int] = {}
        for slot, count in counts:
            total[slot] = total.get(slot, 0) + count
        base = total.pop(None, 0)
        runs = [(slot, count) for slot, count in total.items() if slot is not None]
        return TokenSlots(runs, base=base, device=self._base.device)


def _place(row: StepRow) -> tuple[int, int]:
    """Rows of one slot stand together, those of the bare base first, each in the order of their lanes."""
    return -1 if row.slot is None else row.slot, row.lane.index
