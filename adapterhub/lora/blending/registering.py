"""Blends registered adapters into a new one, stored in PEFT's format with its lineage.

    cards -> `LoraDelta`s of each part -> the blend's deltas -> a PEFT folder -> `AdapterRegistry.register`

The scaling of the result is 1 everywhere (alpha is the rank), so no reader of the folder can scale it otherwise.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from adapterhub._files import scratch_folder
from adapterhub.base.copied_weights import check_copied_weights
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.errors import RegistryError
from adapterhub.lora.blending.methods import BlendSettings, blend_deltas
from adapterhub.lora.blending.parts import check_files, check_same_base, read_parts
from adapterhub.lora.blending.resolving import ResolvedAdapter, SingleAdapter, resolve_adapter
from adapterhub.lora.saving import save_adapter
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.registry.cards import CARD_FILE, AdapterCard, CardFields, Lineage, Parent
from adapterhub.registry.local_base import local_base
from adapterhub.registry.references import check_name
from adapterhub.registry.store import AdapterRegistry


def blend_adapters(
    registry: AdapterRegistry,
    name: str,
    weights: str | Mapping[str, float],
    settings: BlendSettings | None = None,
    **fields: Unpack[CardFields],
) -> AdapterCard:
    """Blends registered adapters and registers the result, all or nothing; PEFT's `add_weighted_adapter`.

    Args:
        registry: The registry of the parts and of the result; an existing name gets its next version.
        name: The result's name.
        weights: Reference -> weight, or `"json:0.7+support:0.3"`; see `resolve_adapter`.
        settings: How to blend; exact concatenation if not given.
        **fields: Fields of the card, as in `AdapterRegistry.register`. If not given, the prompt profile is that of the
            part with the largest weight.

    Returns:
        The result's card; its lineage names the parts with versions, digests and weights.

    Raises:
        AdapterNotFoundError: A part is not registered.
        AdapterInvalidError: The files of a part have changed since they were registered.
        AdapterIncompatibleError: The parts belong to different bases, or one uses DoRA.
        InvalidRequestError: A name, a weight or a setting is not valid.
        RegistryError: The result could not be stored.
    """
    check_name(name)
    settings = settings or BlendSettings()
    resolved = resolve_adapter(weights, registry.resolve)
    check_same_base(resolved)
    base = local_base(resolved.main_card.base)
    with scratch_folder(RegistryError, "The blend could not be written") as folder:
        _save(folder, registry, resolved, settings, base)
        # `register` takes what is known of the base from a card in the folder, as it does for another registry's.
        (folder / CARD_FILE).write_bytes(_draft_card(resolved.main_card).to_json())
        all_fields: CardFields = {**_card_fields(resolved, settings), **fields}
        base_name = resolved.main_card.base.name if base else None
        return registry.register(name, folder, base=base_name, trust_card=True, **all_fields)


def _save(
    folder: Path,
    registry: AdapterRegistry,
    resolved: ResolvedAdapter,
    settings: BlendSettings,
    base: Path | None,
) -> None:
    layers = LinearLayers.of_folder(base) if base else None
    source = registry.folder(resolved.main_card)
    check_files(registry, resolved)
    if base and layers:
        for card, _ in resolved.parts:  # copies of the base's weights are not blended
            check_copied_weights(registry.folder(card), base, layers)
    if isinstance(resolved, SingleAdapter) and settings.method == "cat":
        # A copy under another name, DoRA or not.
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(source / file, folder / file)
        return
    deltas = blend_deltas(read_parts(registry, resolved, layers), settings)
    base_settings = json.loads((source / CONFIG_FILE).read_bytes())
    save_adapter(folder, deltas, base_settings, layers.shapes if layers else {})


def _draft_card(main: AdapterCard) -> AdapterCard:
    return AdapterCard(
        name=main.name,
        version=main.version,
        digest=main.digest,
        base=main.base,
        peft=main.peft,
        prompt=main.prompt,
        created_at=main.created_at,
        updated_at=main.updated_at,
    )


def _card_fields(resolved: ResolvedAdapter, settings: BlendSettings) -> CardFields:
    parents = tuple(
        Parent(name=card.name, version=card.version, digest=card.digest, weight=weight)
        for card, weight in resolved.parts
    )
    used = {field: value for field, value in vars(settings).items() if value is not None}
    return {
        "description": f"A blend ({settings.method}) of {resolved.ref}.",
        "lineage": Lineage(method="blend", parents=parents, settings=used),
    }
