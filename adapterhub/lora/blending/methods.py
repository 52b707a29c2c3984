"""Blends: from the changes of several adapters and weights to the changes of one.

Everything is computed on whole changes `B @ A`, scaling included, never on A and B apart: the sum of two products is
not the product of two sums, and the cross-terms between one adapter's A and another's B are noise as large as the
wanted change. `cat` and `svd` need no dense matrix; `ties` and `dare_ties` do, one layer at a time.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from adapterhub.errors import AdapterIncompatibleError, InvalidRequestError
from adapterhub.lora.blending.sparse import dare_ties, ties
from adapterhub.lora.delta import LoraDelta

Method = Literal["cat", "svd", "linear", "ties", "dare_ties"]
METHODS: tuple[Method, ...] = get_args(Method)
_SPARSE = ("ties", "dare_ties")
_NEARLY_ZERO = 1e-3

Deltas = Mapping[str, LoraDelta]
"""Module name -> change."""


@dataclass(frozen=True)
class BlendSettings:
    """How to blend.

    Attributes:
        method: `cat` (the exact sum; ranks add up), `svd` and `linear` (the same sum, its best approximation of a
            rank), `ties` or `dare_ties` (sparse and with agreed signs, then brought to a rank).
        rank: The rank of the result, for all but `cat`; in each layer the highest of the parts if not given.
        density: For `ties` and `dare_ties`, the share of entries of each change to keep; above 0, at most 1.
        seed: For `dare_ties`, what decides which are kept; 0 if not given.

    Raises:
        InvalidRequestError: There is no such method, or a setting does not go with it.
    """

    method: Method = "cat"
    rank: int | None = None
    density: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidRequestError(
                f"There is no method {self.method!r} of blending.", hint=f"There are: {', '.join(METHODS)}."
            )
        if self.rank is not None and (self.method == "cat" or not _is_int(self.rank) or self.rank < 1):
            raise InvalidRequestError(
                "A rank is a whole number from 1, for every method but cat.", hint="svd cuts to a rank."
            )
        sparse = self.method in _SPARSE
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
    """Blends adapters, layer by layer; memory beyond the parts and the result is that of one layer.

    Args:
        parts: Adapters without DoRA, with their weights. A part that leaves a layer alone changes nothing there.
        settings: How.

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


def concatenate(changes: Sequence[tuple[LoraDelta, float]]) -> LoraDelta:
    """The weighted sum of changes in one layer, exactly; its rank is the sum of theirs.

    DoRA changes the base's own output too, to s * (W x + B A x); the sum over the parts has that form again, with
    s' = 1 + sum w (s - 1) in place of s and B' = sum w s B / s'.

    Args:
        changes: Changes with their weights.

    Raises:
        AdapterIncompatibleError: The scales of DoRA cancel the base's own output somewhere.
    """
    a = torch.cat([delta.a for delta, _ in changes])
    if all(delta.magnitude_scale is None for delta, _ in changes):
        return LoraDelta(a, torch.cat([delta.b * weight for delta, weight in changes], dim=1))
    scales = [
        delta.b.new_ones(len(delta.b)) if delta.magnitude_scale is None else delta.magnitude_scale
        for delta, _ in changes
    ]
    together = torch.ones_like(scales[0])
    for (_, weight), scale in zip(changes, scales, strict=True):
        together += weight * (scale - 1)
    if together.abs().min() < _NEARLY_ZERO:
        raise AdapterIncompatibleError(
            "With these weights the magnitudes of the DoRA adapters cancel outputs of the base.",
            hint="Use smaller weights.",
        )
    b = [
        delta.b * (weight * scale / together)[:, None]
        for (delta, weight), scale in zip(changes, scales, strict=True)
    ]
    return LoraDelta(a, torch.cat(b, dim=1), together)


def compress(delta: LoraDelta, rank: int) -> LoraDelta:
    """The best approximation of a change by one of a lower rank (Eckart-Young), exact if the rank suffices.

    The dense matrix is never formed: with B = Q R and A^T = P S, the singular values are those of the small R S^T.
    """
    out_basis, out_core = torch.linalg.qr(delta.b.double())
    in_basis, in_core = torch.linalg.qr(delta.a.double().T)
    u, s, vh = torch.linalg.svd(out_core @ in_core.T, full_matrices=False)
    b, a = out_basis @ (u * s)[:, :rank], vh[:rank] @ in_basis.T
    return LoraDelta(a.to(delta.a.dtype), b.to(delta.b.dtype))


def _blend_layer(
    module: str, changes: Sequence[tuple[LoraDelta, float]], settings: BlendSettings
) -> LoraDelta:
    if len({(len(delta.b), delta.a.shape[1]) for delta, _ in changes}) > 1:
        raise AdapterIncompatibleError(
            f"The adapters change {module!r} in different shapes.", hint="Blend adapters of one base."
        )
    rank = settings.rank or max(len(delta.a) for delta, _ in changes)
    match settings.method:
        case "cat":
            return concatenate(changes)
        case "svd" | "linear":
            return compress(concatenate(changes), rank)
        case "ties" | "dare_ties":
            return _factored(_sparse_sum(module, changes, settings), rank)


def _sparse_sum(
    module: str, changes: Sequence[tuple[LoraDelta, float]], settings: BlendSettings
) -> torch.Tensor:
    dense = [delta.b @ delta.a for delta, _ in changes]
    weights, density = [weight for _, weight in changes], settings.density or 1.0
    if settings.method == "ties":
        return ties(dense, weights, density)
    # A layer's own stream, so that what happens to it does not depend on which other layers there are.
    seed = ((settings.seed or 0) + zlib.crc32(module.encode())) % 2**63
    return dare_ties(dense, weights, density, torch.Generator(dense[0].device).manual_seed(seed))


def _factored(dense: torch.Tensor, rank: int) -> LoraDelta:
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    return LoraDelta(vh[:rank].contiguous(), (u * s)[:, :rank].contiguous())


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
