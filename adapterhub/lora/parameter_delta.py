"""What one adapter changes about the bare parameters of one module, as those that hold a mixture's experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import nn

from adapterhub.base.parameters import ExpertPiece, ParameterShape


class ExpertFactors(NamedTuple):
    """The change of one parameter: `b @ a` for each of its experts, in PEFT's orientation.

    Attributes:
        a: `lora_A` of each expert, shape (experts, r, in_features).
        b: `lora_B` of each, times the scaling, shape (experts, out_features, r).
    """

    a: torch.Tensor
    b: torch.Tensor

    @classmethod
    def of_peft(cls, a: torch.Tensor, b: torch.Tensor, experts: int) -> Self:
        """From PEFT's matrices, in which an expert has adjoining rows of `lora_A`, but every nth column of `lora_B`.

        Args:
            a: Shape (experts * r, in_features).
            b: Shape (out_features, r * experts), with the scaling.
            experts: The number of experts.
        """
        rows, columns = a.reshape(experts, -1, a.shape[1]), b.T.reshape(-1, experts, len(b))
        return cls(rows.contiguous(), columns.transpose(0, 1).contiguous().transpose(1, 2))

    @classmethod
    def of_single(
        cls, shape: ParameterShape, pieces: Sequence[tuple[ExpertPiece, torch.Tensor, torch.Tensor]]
    ) -> Self:
        """From the matrices of single experts, and of gate and up on their own, as transformers 4 had them.

        Args:
            shape: The parameter's shape.
            pieces: The part of the parameter, `lora_A` of shape (r, in_features) and `lora_B`, with the scaling.
        """
        rank, parts = max(len(a) for _, a, _ in pieces), pieces[0][0].parts
        rows, height = parts * rank, shape.out_features // parts
        a_of_all = pieces[0][1].new_zeros(shape.experts, rows, shape.in_features)
        b_of_all = a_of_all.new_zeros(shape.experts, rows, shape.out_features).transpose(1, 2)
        for (_, expert, part, _), a, b in pieces:
            own = slice(part * rank, part * rank + len(a))
            a_of_all[expert, own] = a
            b_of_all[expert, part * height : (part + 1) * height, own] = b
        return cls(a_of_all, b_of_all)

    def dense(self, *, transposed: bool) -> torch.Tensor:
        """The change itself, shape (experts, out_features, in_features), or with the last two the other way round."""
        change = self.b @ self.a
        return change.transpose(1, 2) if transposed else change


@dataclass(frozen=True)
class ParameterDelta:
    """The change of one module's parameters by one adapter.

    Attributes:
        factors: The parameter's name in the module -> its change.
    """

    factors: Mapping[str, ExpertFactors]

    @property
    def bytes(self) -> int:
        """Memory of its tensors."""
        return sum(a.nbytes + b.nbytes for a, b in self.factors.values())

    @property
    def rank(self) -> int:
        """The highest rank of one expert."""
        return max(a.shape[1] for a, _ in self.factors.values())

    def to(self, dtype: torch.dtype) -> Self:
        """The same change in another dtype."""
        return self._mapped(lambda tensor: tensor.to(dtype))

    def on(self, device: torch.device) -> Self:
        """The same change on another device."""
        return self._mapped(lambda tensor: tensor.to(device))

    @classmethod
    def weighted_sum(cls, changes: Sequence[tuple[Self, float]], base: nn.Module | None = None) -> Self:
        """The exact weighted sum of changes of one module; the rank of each parameter is the sum of theirs.

        Args:
            changes: Changes with their weights.
            base: Not needed.
        """
        parts: dict[str, list[ExpertFactors]] = {}
        for delta, weight in changes:
            for name, (a, b) in delta.factors.items():
                parts.setdefault(name, []).append(ExpertFactors(a, b * weight))
        return cls(
            {
                name: ExpertFactors(torch.cat([a for a, _ in found], 1), torch.cat([b for _, b in found], 2))
                for name, found in parts.items()
            }
        )

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        return type(self)(
            {name: ExpertFactors(change(a), change(b)) for name, (a, b) in self.factors.items()}
        )
