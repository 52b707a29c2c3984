"""The forward pass that transformers' model computes, of whatever architecture it is."""

from __future__ import annotations

from typing import Any

import torch

from adapterhub.engine.kv.attention import AttentionStep, PackedAttention


class TransformersForward:
    """A `ModelForward` that calls transformers' model.

    Args:
        model: The model.
        attention: What replaces its attention.
    """

    name = "transformers"

    def __init__(self, model: Any, attention: PackedAttention) -> None:
        self._model, self._attention = model, attention

    def __call__(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        logit_indices: torch.Tensor,
        step: AttentionStep,
    ) -> torch.Tensor:
        """See `ModelForward`."""
        with self._attention.using(step):
            output = self._model(
                input_ids=token_ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=logit_indices,
            )
        logits: torch.Tensor = output.logits[0]
        return logits
