"""What computes a packed step, whatever the model is."""

from __future__ import annotations

from typing import Protocol

import torch

from adapterhub.engine.kv.attention import PackedStep


class ModelForward(Protocol):
    """A forward pass over packed tokens.

    Attributes:
        name: How it computes them, for `EngineStats.forward`.
    """

    @property
    def name(self) -> str: ...

    def __call__(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        logit_indices: torch.Tensor,
        step: PackedStep,
    ) -> torch.Tensor:
        """The logits at some of the tokens.

        Args:
            token_ids: Shape (tokens,).
            positions: The position of each token in its sequence, shape (tokens,).
            logit_indices: The tokens whose logits are computed, shape (logits,).
            step: Computes the attention.

        Returns:
            Shape (logits, vocabulary).
        """
        ...
