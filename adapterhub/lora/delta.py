"""The change of one layer by one adapter, independent of how the adapter was stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LoraDelta:
    """The change of one layer by one adapter: `b @ a`, and for DoRA a scale of the adapted weight's rows.

    Attributes:
        a: `lora_A`, the down-projection, shape (r, in_features).
        b: `lora_B`, the up-projection, times the scaling, shape (out_features, r). The scaling is alpha / r, or
            alpha / sqrt(r) for rsLoRA (arXiv 2312.03732).
        magnitude_scale: DoRA's magnitude over the norm of the adapted weight's rows, shape (out_features,), PEFT's
            `mag_norm_scale` (arXiv 2402.09353); None without DoRA.
    """

    a: torch.Tensor
    b: torch.Tensor
    magnitude_scale: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Memory of its tensors."""
        scale = 0 if self.magnitude_scale is None else self.magnitude_scale.nbytes
        return self.a.nbytes + self.b.nbytes + scale

    def covers(self, other: LoraDelta) -> bool:
        """Whether writing this change into a slot overwrites all of another one."""
        scaled = self.magnitude_scale is not None or other.magnitude_scale is None
        return scaled and self.a.shape[0] >= other.a.shape[0]

    def to(self, dtype: torch.dtype) -> LoraDelta:
        """The same change in another dtype."""
        scale = None if self.magnitude_scale is None else self.magnitude_scale.to(dtype)
        return LoraDelta(self.a.to(dtype), self.b.to(dtype), scale)
