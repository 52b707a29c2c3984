"""What one adapter changes in one layer, whatever form it was stored in."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LoraDelta:
    """What one adapter changes in one layer.

    Attributes:
        a: The down-projection, shape (r, in_features).
        b: The up-projection times the scaling, shape (out_features, r).
        magnitude_scale: DoRA's magnitude over the norm of the adapted weight, shape (out_features,), or None.
    """

    a: torch.Tensor
    b: torch.Tensor
    magnitude_scale: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """What its tensors take."""
        scale = 0 if self.magnitude_scale is None else self.magnitude_scale.nbytes
        return self.a.nbytes + self.b.nbytes + scale

    def covers(self, other: LoraDelta) -> bool:
        """Whether this change, written over another, leaves nothing of it."""
        scaled = self.magnitude_scale is not None or other.magnitude_scale is None
        return scaled and self.a.shape[0] >= other.a.shape[0]

    def to(self, dtype: torch.dtype) -> LoraDelta:
        """The same change in another dtype."""
        scale = None if self.magnitude_scale is None else self.magnitude_scale.to(dtype)
        return LoraDelta(self.a.to(dtype), self.b.to(dtype), scale)
