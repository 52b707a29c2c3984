"""What adapters change about one weight of their base, computed for a block of its rows at a time, in float32.

One adapter is PEFT's `merge_and_unload`, bit for bit: `W + scaling * (B @ A)`, and for DoRA (arXiv 2402.09353, equation
5) the direction of that sum with the norms of the magnitude vector. A blend adds up weighted changes: of plain adapters
by concatenated factors, as the stored blend `cat`, of each other by its merged weight less the base's.
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

    @property
    def is_dora(self) -> bool:
        """Whether the adapter scales the sum."""
        return self.magnitudes is not None

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
class _Replaced:
    """Rows of a weight that an adapter replaces.

    Attributes:
        token_ids: Their numbers; None if it replaces all.
        rows: Their values.
        weight: The adapter's weight in the sum.
    """

    token_ids: torch.Tensor | None
    rows: torch.Tensor
    weight: float

    def merge_into(self, rows: torch.Tensor, block: slice) -> torch.Tensor:
        """As `_Factors.merge_into`."""
        if self.token_ids is None:
            return rows.copy_(self.rows[block])
        within = (self.token_ids >= block.start) & (self.token_ids < block.stop)
        return rows.index_copy_(0, self.token_ids[within] - block.start, self.rows[within])


@dataclass(frozen=True)
class WeightChange:
    """The change of one parameter.

    Attributes:
        name: The parameter's name in its module.
        parts: The adapters that change it, each with its own name of the module.
        experts: What it holds of a mixture's parameter; None for a matrix of one layer.
    """

    name: str
    parts: tuple[tuple[AdapterPart, str], ...]
    experts: ExpertsPart | None = None

    @property
    def module(self) -> str:
        """The module, for messages."""
        return self.parts[0][1]

    def load(self, *, transposed: bool) -> LoadedChange:
        """Reads the adapters' tensors of this parameter.

        Args:
            transposed: The base stores the weight as (in_features, out_features).

        Raises:
            AdapterInvalidError: A file has become shorter.
        """
        if self.experts:
            return LoadedChange([_read_experts(part, module, self.experts) for part, module in self.parts])
        return LoadedChange([_read(part, module, self.name, transposed) for part, module in self.parts])


class LoadedChange:
    """The change of one parameter, in memory.

    Args:
        changes: Those of each adapter.
    """

    def __init__(self, changes: Sequence[_Factors | _Replaced]) -> None:
        self._one = changes[0] if len(changes) == 1 and changes[0].weight == 1 else None
        several = () if self._one else changes
        self._sum = _concatenated([one for one in several if isinstance(one, _Factors) and not one.is_dora])
        self._others = [one for one in several if isinstance(one, _Replaced) or one.is_dora]

    def merge(self, rows: torch.Tensor, block: slice) -> torch.Tensor:
        """The merged rows.

        Args:
            rows: Some rows of the base's weight, shape (rows, in_features), float32; it is overwritten.
            block: Which rows of the weight they are.
        """
        if self._one:
            return self._one.merge_into(rows, block)
        changes = [one.merge_into(rows.clone(), block).sub_(rows).mul_(one.weight) for one in self._others]
        if self._sum:
            rows = self._sum.merge_into(rows, block)
        for change in changes:
            rows.add_(change)
        return rows


def _read_experts(part: AdapterPart, module: str, experts: ExpertsPart) -> _Factors:
    return _Factors(*experts.read(part, module), None, part.weight)


def _read(part: AdapterPart, module: str, name: str, transposed: bool) -> _Factors | _Replaced:
    further, settings = part.info.further, part.info.config.settings
    if module in further.saved:
        saved = part.read_saved(f"{module}.{name}")
        return _Replaced(None, saved.T if transposed else saved.view(-1, saved.shape[-1]), part.weight)
    tensors = part.read(module)
    if module in further.tokens:
        token_ids = torch.tensor(further.tokens[module].token_ids)
        return _Replaced(token_ids, tensors["trainable_tokens_delta"], part.weight)
    scaling = settings.scaling(module)
    if module in further.embeddings:  # its weight changes by the transpose
        a, b = tensors["lora_embedding_B"].T, tensors["lora_embedding_A"].T
        return _Factors(a, b, scaling, None, part.weight)
    magnitudes = tensors.get("lora_magnitude_vector")
    return _Factors(tensors["lora_A"], tensors["lora_B"], scaling, magnitudes, part.weight)


def _concatenated(factors: Sequence[_Factors]) -> _Factors | None:
    if not factors:
        return None
    b = torch.cat([one.b * one.scaling * one.weight for one in factors], dim=-1)
    return _Factors(torch.cat([one.a for one in factors], dim=-2), b, 1.0, None, 1.0)
