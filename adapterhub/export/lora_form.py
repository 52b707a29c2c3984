"""Rewriting an adapter's change of the base as LoRA that a server can read, and how far the result is from it.

`low_rank` cuts ranks by SVD and approximates DoRA, whose change has full rank. `pad_ranks` gives all layers one rank,
which is exact. The error is measured layer by layer: the Frobenius norm of the difference over that of the change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from adapterhub.errors import InvalidRequestError
from adapterhub.lora.blending.methods import Deltas, compress
from adapterhub.lora.delta import LoraDelta

BaseWeight = Callable[[str], torch.Tensor]
"""From a layer's name to its weight in the base, shape (out_features, in_features)."""

# Up to this size an exact SVD of a dense change takes less than a second.
_EXACT_SVD = 1024
_OVERSAMPLING = 16
_ITERATIONS = 4


@dataclass(frozen=True)
class LoraForm:
    """What the readers of an exported adapter can take.

    Attributes:
        plain: They read `r` and `lora_alpha` only. rsLoRA is folded into alpha; ranks and alphas of single layers into
            the weights, with zeros up to the highest rank. Exact but for float32's rounding.
        rank: The highest rank that they take; higher ones are cut by SVD, the best approximation.
        dora: `keep`, or `svd` to approximate DoRA by LoRA of `rank`, or of its own rank.
        max_error: The largest `ChangeError.error` that is accepted.

    Raises:
        InvalidRequestError: A setting has no such value.
    """

    plain: bool = False
    rank: int | None = None
    dora: Literal["keep", "svd"] = "keep"
    max_error: float = 0.5

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise InvalidRequestError("A rank is a whole number from 1.")
        if self.dora not in ("keep", "svd"):
            raise InvalidRequestError("dora is 'keep' or 'svd'.", hint="svd approximates it by LoRA.")
        if not self.max_error >= 0:
            raise InvalidRequestError("max_error is a number from 0.", hint="0.5 is the default.")


@dataclass(frozen=True)
class ChangeError:
    """How far an adapter's change of the base is from another's.

    Attributes:
        error: The Frobenius norm of the difference over that of the change, over all layers; 0.01 is one percent.
        worst_layer: The layer where that ratio is the highest; None if nothing differs.
        worst_error: The ratio there.
    """

    error: float = 0.0
    worst_layer: str | None = None
    worst_error: float = 0.0


def low_rank(module: str, delta: LoraDelta, rank: int, base_weight: BaseWeight | None) -> LoraDelta:
    """The best LoRA of at most a rank for a layer's change, without magnitudes.

    Args:
        module: The layer's name.
        delta: Its change; one without DoRA whose rank is low enough is returned as it is.
        rank: The highest rank.
        base_weight: The base's weights, for DoRA.
    """
    if delta.magnitude_scale is None:
        return compress(delta, rank) if len(delta.a) > rank else delta
    dense = _dense(module, delta, base_weight)
    if min(dense.shape) <= _EXACT_SVD:
        u, s, vh = torch.linalg.svd(dense, full_matrices=False)
        vh = vh[:rank]
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same result each time
            u, s, v = torch.svd_lowrank(dense, min(rank + _OVERSAMPLING, *dense.shape), _ITERATIONS)
        vh = v[:, :rank].T
    return LoraDelta(vh.contiguous(), (u * s)[:, :rank].contiguous())


def pad_ranks(deltas: Deltas) -> dict[str, LoraDelta]:
    """The same changes with one rank in all layers: zeros fill the rest.

    Args:
        deltas: Changes without DoRA.
    """
    rank = max(len(delta.a) for delta in deltas.values())
    return {
        module: LoraDelta(
            torch.nn.functional.pad(delta.a, (0, 0, 0, rank - len(delta.a))),
            torch.nn.functional.pad(delta.b, (0, rank - len(delta.a))),
        )
        for module, delta in deltas.items()
    }


def change_error(
    written: Deltas, wanted: Mapping[str, LoraDelta], base_weight: BaseWeight | None
) -> ChangeError:
    """How far a written adapter is from what it stands for.

    Args:
        written: Its changes, without DoRA.
        wanted: The changes of the same layers that it stands for.
        base_weight: The base's weights, for DoRA.
    """
    total_difference = total = 0.0
    worst: tuple[float, str | None] = (0.0, None)
    for module, delta in wanted.items():
        if delta.magnitude_scale is None:
            difference, size = (
                _norm(LoraDelta.weighted_sum([(written[module], 1), (delta, -1)])),
                _norm(delta),
            )
        else:
            dense = _dense(module, delta, base_weight)
            difference = float((written[module].b @ written[module].a - dense).norm())
            size = float(dense.norm())
        total_difference, total = math.hypot(total_difference, difference), math.hypot(total, size)
        worst = max(worst, (_ratio(difference, size), module), key=lambda one: one[0])
    return ChangeError(_ratio(total_difference, total), worst[1], worst[0])


def _ratio(difference: float, size: float) -> float:
    return difference / size if size else float(difference > 0)


def _norm(delta: LoraDelta) -> float:
    """The Frobenius norm of `b @ a`, which is not formed."""
    b, a = torch.linalg.qr(delta.b.double(), mode="r").R, torch.linalg.qr(delta.a.double().T, mode="r").R
    return float((b @ a.T).norm())


def _dense(module: str, delta: LoraDelta, base_weight: BaseWeight | None) -> torch.Tensor:
    """A layer's change, of DoRA too: s * (W + b @ a) - W."""
    if base_weight is None or delta.magnitude_scale is None:
        raise ValueError(f"The change of {module} has no magnitudes, or the base's weights are missing.")
    scale, product = delta.magnitude_scale[:, None], delta.b @ delta.a
    return product.mul_(scale).add_(base_weight(module) * (scale - 1))
