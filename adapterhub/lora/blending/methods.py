"""Blend methods: from the changes of several adapters and their weights to the changes of one.

The methods are PEFT's `combination_type`s of `add_weighted_adapter`, but all of them work on whole changes `B @ A`,
scaling included, never on A and B apart. The product of two sums is not the sum of two products: the cross-terms
between one adapter's A and another's B are noise as large as the wanted change. `cat` and `svd` need no dense
matrix; `ties` and `dare_ties` do, one layer at a time.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from adapterhub.errors import AdapterIncompatibleError, InvalidRequestError
from adapterhub.lora.blending.sparse import dare_ties, ties
from adapterhub.lora.delta import LoraDelta, ModuleDelta

BlendMethod = Literal["cat", "svd", "linear", "ties", "dare_ties"]
BLEND_METHODS: tuple[BlendMethod, ...] = get_args(BlendMethod)
_SPARSE_METHODS = ("ties", "dare_ties")

Deltas = Mapping[str, LoraDelta]
"""Module name -> change of one adapter."""


@dataclass(frozen=True)
class BlendSettings:
    """How to blend.

    Attributes:
        method: PEFT's `combination_type`. `cat` is the exact sum, and ranks add up. `svd` and `linear` are the best
            approximation of that sum with a given rank. `ties` (arXiv 2306.01708) and `dare_ties` (arXiv 2311.03099)
            keep a share of the entries, agree on their signs, and approximate the result with a given rank.
        rank: The rank of the result, for all methods but `cat`; if not given, in each layer the highest of the parts.
        density: For `ties` and `dare_ties`, the share of entries of each change to keep; above 0, at most 1.
        seed: For `dare_ties`, the seed of the random choice of entries; 0 if not given.

    Raises:
        InvalidRequestError: There is no such method, or a setting does not belong to the method.
    """

    method: BlendMethod = "cat"
    rank: int | None = None
    density: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.method not in BLEND_METHODS:
            raise InvalidRequestError(
                f"There is no blend method {self.method!r}.",
                hint=f"There are: {', '.join(BLEND_METHODS)}.",
            )
        if self.rank is not None and (self.method == "cat" or not _is_int(self.rank) or self.rank < 1):
            raise InvalidRequestError(
                "A rank is a whole number from 1, for every method but cat.", hint="Use svd to choose a rank."
            )
        sparse = self.method in _SPARSE_METHODS
        if sparse and (self.density is None or not 0 < self.density <= 1):
            raise InvalidRequestError(
                f"{self.method} needs a density above 0 and at most 1.", hint="Try 0.2 to 0.5."
            )
        if not sparse and self.density is not None:
            raise InvalidRequestError(f"{self.method} has no density.", hint="ties and dare_ties have one.")
        if self.seed is not None and (
            self.method != "dare_ties" or not _is_int(self.seed) or not 0 <= self.seed < 2**63
        ):
            raise InvalidRequestError("A seed is a whole number from 0 to 2^63, for dare_ties only.")


def blend_deltas(parts: Sequence[tuple[Deltas, float]], settings: BlendSettings) -> dict[str, LoraDelta]:
    """Blends adapters layer by layer; apart from the parts and the result it needs the memory of one layer.

    Args:
        parts: Adapters without DoRA, with their weights. A part contributes nothing to a layer that it does not target.
        settings: How to blend.

    Returns:
        Module name -> change.

    Raises:
        AdapterIncompatibleError: The parts' shapes differ, so they belong to different bases.
    """
    modules = sorted({module for deltas, _ in parts for module in deltas})
    return {
        module: _blend_layer(
            module, [(deltas[module], w) for deltas, w in parts if module in deltas], settings
        )
        for module in modules
    }


def weighted_sum(
    module: str, changes: Sequence[tuple[ModuleDelta, float]], base: nn.Module | None = None
) -> ModuleDelta:
    """The exact weighted sum of what adapters change about one module.

    Args:
        module: Its name, for messages.
        changes: Changes with their weights.
        base: The base's module, if there is one.

    Raises:
        AdapterIncompatibleError: The changes are of different kinds, or have no sum.
    """
    kinds = {type(change) for change, _ in changes}
    if len(kinds) > 1:
        raise AdapterIncompatibleError(
            f"The adapters change {module!r} in different ways, which have no sum.",
            hint="Blend adapters that were trained with the same kinds of weights.",
        )
    return kinds.pop().weighted_sum(changes, base)


def compress(delta: LoraDelta, rank: int) -> LoraDelta:
    """The best approximation of a change with a given rank (Eckart-Young), exact if the rank suffices.

    The dense matrix is never formed: with B = Q R and A^T = P S, the singular values are those of the small R S^T.

    Args:
        delta: A change without DoRA.
        rank: The rank of the result.
    """
    out_basis, out_core = torch.linalg.qr(delta.b.double())
    in_basis, in_core = torch.linalg.qr(delta.a.double().T)
    u, s, vh = torch.linalg.svd(out_core @ in_core.T, full_matrices=False)
    b, a = out_basis @ (u * s)[:, :rank], vh[:rank] @ in_basis.T
    return type(delta)(a.to(delta.a.dtype), b.to(delta.b.dtype))


def _blend_layer(
    module: str, changes: Sequence[tuple[LoraDelta, float]], settings: BlendSettings
) -> LoraDelta:
    if len({(len(delta.b), delta.a.shape[1]) for delta, _ in changes}) > 1:
        raise AdapterIncompatibleError(
            f"The adapters change {module!r} in different shapes.", hint="Blend adapters of one base."
        )
    rank = settings.rank or max(len(delta.a) for delta, _ in changes)
    kind = type(changes[0][0])  # LoRA on a linear layer, or on an embedding
    match settings.method:
        case "cat":
            return kind.weighted_sum(changes)
        case "svd" | "linear":
            return compress(kind.weighted_sum(changes), rank)
        case "ties" | "dare_ties":
            return kind(*_factorize(_sparse_sum(module, changes, settings), rank))


def _sparse_sum(
    module: str, changes: Sequence[tuple[LoraDelta, float]], settings: BlendSettings
) -> torch.Tensor:
    dense = [delta.b @ delta.a for delta, _ in changes]
    weights, density = [weight for _, weight in changes], settings.density or 1.0
    if settings.method == "ties":
        return ties(dense, weights, density)
    # A seed for each layer, so that its result does not depend on which other layers there are.
    seed = ((settings.seed or 0) + zlib.crc32(module.encode())) % 2**63
    return dare_ties(dense, weights, density, torch.Generator(dense[0].device).manual_seed(seed))


def _factorize(dense: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    return vh[:rank].contiguous(), (u * s)[:, :rank].contiguous()


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
