"""Which earlier tokens a token attends to: all, a window, a chunk, or whatever a model asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from adapterhub.errors import EngineError

_PROBED_POSITIONS = 1 << 17


@dataclass(frozen=True, eq=False)
class AttentionMask:
    """Which tokens each token attends to.

    Attributes:
        visible: Positions of queries and of keys, of shapes that broadcast -> whether a query attends to a key.
        causal_until: Every query at a position below it attends to all tokens before.
    """

    visible: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    causal_until: float

    @classmethod
    def of_function(cls, function: Callable[..., torch.Tensor], device: torch.device) -> AttentionMask:
        """The mask by a mask function of transformers: batch index, head index, query and key position -> bool.

        Raises:
            EngineError: A token attends to later ones, or the function knows the tokens of one prompt only.
        """
        visible = partial(function, 0, 0)
        try:
            # Single positions: PyTorch checks those also where it looks them up in a tensor on a GPU.
            sees_later = bool(visible(torch.tensor(0), torch.tensor(1)))
        except IndexError as error:
            raise EngineError(
                "The base's attention cannot be computed in a packed batch: its masks are made for one prompt."
            ) from error
        if sees_later:
            raise EngineError("The base cannot generate: its tokens attend to later ones.")
        positions = torch.arange(_PROBED_POSITIONS, device=device)
        # Masks take away the oldest tokens first, so the first token tells.
        lost = (~visible(positions, positions[:1])).nonzero()
        return cls(visible, int(lost[0]) if len(lost) else _PROBED_POSITIONS)

    @classmethod
    def of_window(cls, window: int) -> AttentionMask:
        """A token attends to itself and the last ones before, `window` in all."""
        return cls(lambda queries, keys: (keys <= queries) & (keys > queries - window), window)

    @property
    def hides_nothing(self) -> bool:
        """Whether every query attends to all tokens before it."""
        return self.causal_until == math.inf

    def up_to(self, length: int) -> AttentionMask:
        """The mask of a sequence of this length, the causal one where that is the same."""
        return CAUSAL if length <= self.causal_until else self

    def additive(self, queries: torch.Tensor, keys: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What to add to scores: zero where a query attends to a key, and minus infinity elsewhere."""
        masked = ~self.visible(queries, keys)
        return torch.zeros(masked.shape, dtype=dtype, device=masked.device).masked_fill_(masked, -torch.inf)


CAUSAL = AttentionMask(lambda queries, keys: keys <= queries, math.inf)


def note_mask_function(*, mask_function: Callable[..., Any], device: torch.device, **_: Any) -> torch.Tensor:
    """A function of transformers' `AttentionMaskInterface`: a mask of one token that has its function along."""
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    mask.mask_function = mask_function  # type: ignore[attr-defined]
    return mask
