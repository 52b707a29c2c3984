"""TIES and DARE on dense changes: keep some entries of each, elect a sign for every entry, average those that agree.

The definitions are those of PEFT 0.21 (`peft/utils/merge_utils.py`). PEFT applies them to A and B separately unless
asked for the `_svd` variants; here they are only applied to whole changes `B @ A`, which is what the papers merge.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def ties(changes: Sequence[torch.Tensor], weights: Sequence[float], density: float) -> torch.Tensor:
    """Merges changes by trimming, electing signs and averaging (TIES, arXiv 2306.01708).

    Args:
        changes: Dense changes of one shape.
        weights: One for each change. They scale the average; the signs are elected without them, as in PEFT.
        density: The share of entries of each change to keep, those of largest magnitude; above 0, at most 1.
    """
    return _elect_and_average([_trim(change, density) for change in changes], weights)


def dare_ties(
    changes: Sequence[torch.Tensor], weights: Sequence[float], density: float, generator: torch.Generator
) -> torch.Tensor:
    """As `ties`, but entries are dropped at random and the rest rescaled by 1 / density (DARE, arXiv 2311.03099).

    Args:
        changes: Dense changes of one shape.
        weights: As in `ties`.
        density: The probability that an entry is kept.
        generator: The source of randomness.
    """
    return _elect_and_average([_drop(change, density, generator) for change in changes], weights)


def _trim(change: torch.Tensor, density: float) -> torch.Tensor:
    kept = change.abs().flatten().topk(int(density * change.numel()), sorted=False).indices
    trimmed = torch.zeros_like(change).flatten()
    trimmed[kept] = change.flatten()[kept]
    return trimmed.view_as(change)


def _drop(change: torch.Tensor, density: float, generator: torch.Generator) -> torch.Tensor:
    kept = torch.bernoulli(torch.full_like(change, density), generator=generator)
    return change * kept / density


def _elect_and_average(changes: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted mean of each entry over the changes whose sign is that of the sum; zeros do not count."""
    stacked = torch.stack(list(changes))
    elected = torch.where(stacked.sum(dim=0) >= 0, 1, -1)
    agree = stacked.sign() == elected
    scales = torch.tensor(weights, dtype=stacked.dtype, device=stacked.device).view(-1, 1, 1)
    mixed: torch.Tensor = (stacked * scales * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)
    return mixed
