"""What one adapter changes about one module of the base, independent of how the adapter was stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import nn

from adapterhub.errors import AdapterIncompatibleError

_MIN_MAGNITUDE_SCALE = 1e-3  # a smaller one would make the up-projection huge


class ModuleDelta(Protocol):
    """What one adapter changes about one module; each kind of change is a class, `LoraDelta` the usual one.

    `adapterhub.lora.model_manager` names the class that applies each kind in a forward pass.
    """

    @property
    def bytes(self) -> int:
        """Memory of its tensors."""
        ...

    @property
    def rank(self) -> int:
        """The rank of its factors; 0 if it has none."""
        ...

    def to(self, dtype: torch.dtype) -> Self:
        """The same change in another dtype."""
        ...

    @classmethod
    def weighted_sum(cls, changes: Sequence[tuple[Self, float]], base: nn.Module | None) -> Self:
        """The exact weighted sum of changes of one module; the base's module is given where there is one.

        Raises:
            AdapterIncompatibleError: It cannot be formed.
        """
        ...


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

    @property
    def rank(self) -> int:
        """The number of rows of `a`."""
        return self.a.shape[0]

    def covers(self, other: LoraDelta) -> bool:
        """Whether writing this change into a slot overwrites all of another one."""
        scaled = self.magnitude_scale is not None or other.magnitude_scale is None
        return scaled and self.rank >= other.rank

    def to(self, dtype: torch.dtype) -> Self:
        """The same change in another dtype."""
        scale = None if self.magnitude_scale is None else self.magnitude_scale.to(dtype)
        return type(self)(self.a.to(dtype), self.b.to(dtype), scale)

    def in_bfloat16(self) -> Self:
        """The same change with its factors in bfloat16, if that changes none of their numbers; else as it is.

        So it is for an adapter that was stored in bfloat16 and has a power of two as its scaling.
        """
        if not _is_bfloat16(self.a[:1]):  # most often enough to know
            return self
        exact = _is_bfloat16(self.a) and _is_bfloat16(self.b)
        return replace(self, a=self.a.bfloat16(), b=self.b.bfloat16()) if exact else self

    def pin_memory(self) -> Self:
        """The same change in pinned memory, laid out as in a LoRA slot: a GPU copies it while the host goes on."""
        scale = None if self.magnitude_scale is None else self.magnitude_scale.pin_memory()
        return type(self)(self.a.contiguous().pin_memory(), self.b.T.contiguous().pin_memory().T, scale)

    @classmethod
    def weighted_sum(cls, changes: Sequence[tuple[Self, float]], base: nn.Module | None = None) -> Self:
        """The exact weighted sum of changes in one layer; its rank is the sum of theirs.

        DoRA (arXiv 2402.09353) scales the base's own output too, to s * (W x + B A x). The sum over the parts can be
        written in the same way, with s' = 1 + sum w (s - 1) in place of s and B' = sum w s B / s'.

        Args:
            changes: Changes with their weights.
            base: Not needed.

        Raises:
            AdapterIncompatibleError: The DoRA magnitudes cancel the base's own output somewhere.
        """
        a = torch.cat([delta.a for delta, _ in changes])
        if all(delta.magnitude_scale is None for delta, _ in changes):
            return cls(a, torch.cat([delta.b * weight for delta, weight in changes], dim=1))
        scales = [
            delta.b.new_ones(len(delta.b)) if delta.magnitude_scale is None else delta.magnitude_scale
            for delta, _ in changes
        ]
        total = torch.ones_like(scales[0])
        for (_, weight), scale in zip(changes, scales, strict=True):
            total += weight * (scale - 1)
        if total.abs().min() < _MIN_MAGNITUDE_SCALE:
            raise AdapterIncompatibleError(
                "With these weights the magnitudes of the DoRA adapters cancel outputs of the base.",
                hint="Use smaller weights.",
            )
        b = [
            delta.b * (weight * scale / total)[:, None]
            for (delta, weight), scale in zip(changes, scales, strict=True)
        ]
        return cls(a, torch.cat(b, dim=1), total)


def _is_bfloat16(tensor: torch.Tensor) -> bool:
    return torch.equal(tensor.bfloat16().to(tensor.dtype), tensor)


def unstacked_bytes(deltas: Mapping[str, ModuleDelta]) -> int:
    """What an adapter holds in its slot alone, beside LoRA on linear layers, which all slots hold together.

    Args:
        deltas: Module name -> change.
    """
    return sum(delta.bytes for delta in deltas.values() if type(delta) is not LoraDelta)
