"""The stored parts of a blend: whether they belong together and are unchanged, and what they change."""

from __future__ import annotations

from collections.abc import Callable

import torch

from adapterhub.base.linear_layers import LinearLayers
from adapterhub.errors import AdapterIncompatibleError
from adapterhub.lora.blending.methods import Deltas
from adapterhub.lora.blending.resolving import ResolvedAdapter
from adapterhub.lora.digest_check import DigestCheck
from adapterhub.lora.loading import read_deltas_without_base
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.registry.store import AdapterRegistry


def check_same_base(resolved: ResolvedAdapter) -> None:
    """Checks that the parts of a blend belong to one base, as far as their cards know it.

    Raises:
        AdapterIncompatibleError: Two of them do not.
    """
    known = [(card.ref, card.base.fingerprint) for card, _ in resolved.parts if card.base.fingerprint]
    for other, fingerprint in known[1:]:
        first, wanted = known[0]
        if difference := wanted.mismatch(fingerprint):
            raise AdapterIncompatibleError(
                f"{first} and {other} belong to different bases: {difference}.",
                hint="Blend adapters of one base.",
            )


def check_files(registry: AdapterRegistry, resolved: ResolvedAdapter) -> None:
    """Checks that the files of all parts are those that were registered.

    Raises:
        AdapterInvalidError: Files have changed since, or cannot be read.
    """
    check = DigestCheck()
    for card, _ in resolved.parts:
        check(StoredLoraRequest(card.ref, card.digest, registry.folder(card)))


def read_parts(
    registry: AdapterRegistry,
    resolved: ResolvedAdapter,
    layers: LinearLayers | None,
    base_weight: Callable[[str], torch.Tensor] | None = None,
) -> list[tuple[Deltas, float]]:
    """Reads what each part changes, with its weight, as `blend_deltas` takes them.

    Args:
        registry: Where the parts are.
        resolved: The adapter or the blend.
        layers: As in `read_deltas_without_base`.
        base_weight: As in `read_deltas_without_base`.

    Raises:
        AdapterHubError: As `read_deltas_without_base`.
    """
    return [
        (read_deltas_without_base(registry.folder(card), layers, base_weight), weight)
        for card, weight in resolved.parts
    ]
