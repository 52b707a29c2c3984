"""TIES and DARE over dense changes: keep some entries of each, agree on a sign for every entry, average what agrees.

The definitions are those of PEFT 0.21 (`peft/utils/merge_utils.py`), which applies them to A and B one by one unless
asked for the `_svd` form; here they are only applied to whole changes `B @ A`, which is what the papers merge.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def ties(changes: Sequence[torch.Tensor], weights: Sequence[float], density: float) -> torch.Tensor:
    """Merges changes by trimming, electing signs and averaging (TIES, arXiv 2306.01708).

    Args:
        changes: Dense changes of one shape.
        weights: One each. They scale the average; the signs are elected without them, as in PEFT.
        density: The share of entries of each change to keep, the largest ones; above 0, at most 1.
    """
    return _agree([_trim(change, density) for change in changes], weights)


def dare_ties(
    changes: Sequence[torch.Tensor], weights: Sequence[float], density: float, random: torch.Generator
) -> torch.Tensor:
    """As `ties`, but entries are kept by chance and scaled up to keep the expectation (DARE, arXiv 2311.03099).

    Args:
        changes: Dense changes of one shape.
        weights: As in `ties`.
        density: The probability that an entry is kept.
        random: Decides which.
    """
    return _agree([_drop(change, density, random) for change in changes], weights)


def _trim(change: torch.Tensor, density: float) -> torch.Tensor:
    kept = change.abs().flatten().topk(int(density * change.numel()), sorted=False).indices
    trimmed = torch.zeros_like(change).flatten()
    trimmed[kept] = change.flatten()[kept]
    return trimmed.view_as(change)


def _drop(change: torch.Tensor, density: float, random: torch.Generator) -> torch.Tensor:
    kept = torch.bernoulli(torch.full_like(change, density), generator=random)
    return change * kept / density


def _agree(changes: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted mean, entry by entry, of the changes whose sign is that of the sum; zeros do not vote."""
    stacked = torch.stack(list(changes))
    elected = torch.where(stacked.sum(dim=0) >= 0, 1, -1)
    agree = stacked.sign() == elected
    scales = torch.tensor(weights, dtype=stacked.dtype, device=stacked.device).view(-1, 1, 1)
    mixed: torch.Tensor = (stacked * scales * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)
    return mixed
