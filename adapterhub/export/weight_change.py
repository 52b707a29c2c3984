"""What adapters change about one weight of their base, computed for a block of its rows at a time, in float32.

One adapter is PEFT's `merge_and_unload`, bit for bit: `W + scaling * (B @ A)`, and for DoRA (arXiv 2402.09353, equation
5) the direction of that sum with the norms of the magnitude vector. A blend adds up weighted changes: of plain adapters
by concatenated factors, as the stored blend `cat`, of each with DoRA by its merged weight less the base's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adapterhub.export.adapter_part import AdapterPart
from adapterhub.export.expert_change import ExpertsPart


@dataclass(frozen=True)
class _Factors:
    """`scaling * (b @ a)`, scaled to DoRA's magnitudes if there are some; times a weight.

    Both may have a dimension more, for a mixture's experts.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    magnitudes: torch.Tensor | None
    weight: float

    def merge_into(self, rows: torch.Tensor, block: slice) -> torch.Tensor:
        """The merged rows, whatever the weight; `rows` is overwritten."""
        if self.a.ndim == 3:
            return self._merge_experts(rows, block)
        merged = rows.add_((self.b[block] @ self.a).mul_(self.scaling))
        if self.magnitudes is None:
            return merged
        return merged.mul_((self.magnitudes[block] / torch.linalg.norm(merged, dim=1)).unsqueeze(1))

    def _merge_experts(self, rows: torch.Tensor, block: slice) -> torch.Tensor:
        """The same where the rows of all experts are one below the other."""
        size = self.b.shape[1]
        for expert in range(block.start // size, (block.stop - 1) // size + 1):
            start, stop = max(block.start, expert * size), min(block.stop, (expert + 1) * size)
            b = self.b[expert, start - expert * size : stop - expert * size]
            rows[start - block.start : stop - block.start].add_((b @ self.a[expert]).mul_(self.scaling))
        return rows


@dataclass(frozen=True)
class WeightChange:
    """The change of one weight.

    Attributes:
        parts: The adapters that change it, each with its own name of the module.
        experts: What it holds of a mixture's parameter; None for a matrix of one layer.
    """

    parts: tuple[tuple[AdapterPart, str], ...]
    experts: ExpertsPart | None = None

    @property
    def module(self) -> str:
        """The module, for messages."""
        return self.parts[0][1]

    def load(self) -> LoadedChange:
        """Reads the adapters' tensors of this weight.

        Raises:
            AdapterInvalidError: A file has become shorter.
        """
        return LoadedChange([_read(part, module, self.experts) for part, module in self.parts])


class LoadedChange:
    """The change of one weight, in memory.

    Args:
        factors: Those of each adapter.
    """

    def __init__(self, factors: Sequence[_Factors]) -> None:
        self._one = factors[0] if len(factors) == 1 and factors[0].weight == 1 else None
        self._sum = None if self._one else _concatenated([one for one in factors if one.magnitudes is None])
        self._with_dora = () if self._one else tuple(one for one in factors if one.magnitudes is not None)

    def merge(self, rows: torch.Tensor, block: slice) -> torch.Tensor:
        """The merged rows.

        Args:
            rows: Some rows of the base's weight, shape (rows, in_features), float32; it is overwritten.
            block: Which rows of the weight they are.
        """
        if self._one:
            return self._one.merge_into(rows, block)
        changes = [one.merge_into(rows.clone(), block).sub_(rows).mul_(one.weight) for one in self._with_dora]
        if self._sum:
            rows = self._sum.merge_into(rows, block)
        for change in changes:
            rows.add_(change)
        return rows


def _read(part: AdapterPart, module: str, experts: ExpertsPart | None) -> _Factors:
    if experts:
        return _Factors(*experts.read(part, module), None, part.weight)
    tensors = part.read(module)
    return _Factors(
        tensors["lora_A"],
        tensors["lora_B"],
        part.info.config.settings.scaling(module),
        tensors.get("lora_magnitude_vector"),
        part.weight,
    )


def _concatenated(factors: Sequence[_Factors]) -> _Factors | None:
    if not factors:
        return None
    b = torch.cat([one.b * one.scaling * one.weight for one in factors], dim=-1)
    return _Factors(torch.cat([one.a for one in factors], dim=-2), b, 1.0, None, 1.0)
