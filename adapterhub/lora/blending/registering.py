"""The verb `blend`: several registered adapters into a new one, stored in PEFT's format with its lineage.

    cards -> changes, scaling included -> one adapter's changes -> a PEFT folder -> the registry's own intake

The result's scaling is 1 everywhere (alpha is the rank), so nothing that reads the folder can scale it otherwise.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from adapterhub.base.fingerprint import base_shapes
from adapterhub.base.locating import locate_base
from adapterhub.errors import AdapterIncompatibleError, ConfigError
from adapterhub.lora.blending.methods import BlendSettings, blend_deltas
from adapterhub.lora.blending.references import Blend
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.loading import read_deltas
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.registry.cards import CARD_FILE, AdapterCard, CardFields, Lineage, Parent
from adapterhub.registry.references import check_name
from adapterhub.registry.store import AdapterRegistry

_KEPT_SETTINGS = ("base_model_name_or_path", "revision", "fan_in_fan_out")


def blend_adapters(
    registry: AdapterRegistry,
    name: str,
    weights: str | Mapping[str, float],
    settings: BlendSettings | None = None,
    **fields: Any,
) -> AdapterCard:
    """Blends registered adapters and registers the result, all or nothing.

    Args:
        registry: Where they are, and where the result goes; a name that exists gets its next version.
        name: The result's name.
        weights: Reference -> weight, or `"json:0.7+support:0.3"`; see `Blend.find`.
        settings: How; exact concatenation if not given.
        **fields: What to write on the card, as in `AdapterRegistry.register`. Without a prompt profile it has that
            of the part with the largest weight.

    Returns:
        The result's card; its lineage names the parts with versions, digests and weights.

    Raises:
        AdapterNotFoundError: A part is not registered.
        AdapterIncompatibleError: The parts belong to different bases, or one uses DoRA.
        InvalidRequestError: A name, a weight or a setting is not valid.
        RegistryError: The result could not be stored.
    """
    check_name(name)
    settings = settings or BlendSettings()
    blend = Blend.find(weights, registry.resolve)
    _check_same_base(blend)
    base = _base_at_hand(blend.main)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write(folder, registry, blend, settings, base)
        # What is known of the base goes along as from any other registry: on a card beside the files.
        (folder / CARD_FILE).write_bytes(_draft(blend).to_json())
        said = {**_card_fields(blend, settings), **fields}
        return registry.register(name, folder, base=blend.main.base.name if base else None, **said)


def write_adapter(
    folder: Path,
    deltas: Mapping[str, LoraDelta],
    template: Mapping[str, Any],
    base: Mapping[str, tuple[int, int]],
) -> None:
    """Writes changes as a PEFT folder, with alpha = r so that PEFT's scaling is 1.

    Args:
        folder: Where to.
        deltas: Module name -> change, without DoRA.
        template: An `adapter_config.json` for the same base: its name, and whether its layers are transposed.
        base: The base's layers, to name targets shortly where all layers of a kind are meant; may be empty.
    """
    ranks = {module: len(delta.a) for module, delta in deltas.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    pattern = _pattern({module: other for module, other in ranks.items() if other != rank}, ranks)
    config = {
        **{setting: template[setting] for setting in _KEPT_SETTINGS if template.get(setting) is not None},
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(_shortened(deltas, base)),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {}
    for module, delta in deltas.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = delta.a.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = delta.b.contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _write(
    folder: Path, registry: AdapterRegistry, blend: Blend, settings: BlendSettings, base: Path | None
) -> None:
    source = registry.folder(blend.main)
    if blend.is_plain and settings.method == "cat":  # the same adapter under another name, DoRA or not
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(source / file, folder / file)
        return
    parts = [(read_deltas(registry.folder(card)), weight) for card, weight in blend.parts]
    template = json.loads((source / CONFIG_FILE).read_bytes())
    write_adapter(folder, blend_deltas(parts, settings), template, base_shapes(base) if base else {})


def _check_same_base(blend: Blend) -> None:
    known = [(card.ref, card.base.fingerprint) for card, _ in blend.parts if card.base.fingerprint]
    for other, fingerprint in known[1:]:
        first, wanted = known[0]
        if difference := wanted.mismatch(fingerprint):
            raise AdapterIncompatibleError(
                f"{first} and {other} belong to different bases: {difference}.",
                hint="Blend adapters of one base.",
            )


def _base_at_hand(card: AdapterCard) -> Path | None:
    """The folder of the base that a card names, if it is on this machine."""
    if card.base.name is None:
        return None
    try:
        return locate_base(card.base.name, revision=card.base.revision, local_files_only=True)
    except ConfigError:
        return None


def _draft(blend: Blend) -> AdapterCard:
    main = blend.main
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


def _card_fields(blend: Blend, settings: BlendSettings) -> CardFields:
    parents = tuple(
        Parent(name=card.name, version=card.version, digest=card.digest, weight=weight)
        for card, weight in blend.parts
    )
    used = {field: value for field, value in vars(settings).items() if value is not None}
    return {
        "description": f"A blend ({settings.method}) of {blend.ref}.",
        "lineage": Lineage(method="blend", parents=parents, settings=used),
    }


def _pattern(odd: Mapping[str, int], ranks: Mapping[str, int]) -> dict[str, int]:
    """PEFT's `rank_pattern`: for a whole kind of layer where all of that kind have one rank, else for each layer."""
    kinds: dict[str, set[int]] = {}
    for module, rank in ranks.items():
        kinds.setdefault(_kind(module), set()).add(rank)
    return {
        _kind(module) if len(kinds[_kind(module)]) == 1 else module.replace(".", r"\."): rank
        for module, rank in odd.items()
    }


def _shortened(modules: Mapping[str, Any], base: Mapping[str, Any]) -> set[str]:
    """Names of target modules: a kind, such as `q_proj`, where every layer of that kind in the base is meant."""
    there, here = Counter(map(_kind, base)), Counter(map(_kind, modules))
    return {_kind(module) if here[_kind(module)] == there[_kind(module)] else module for module in modules}


def _kind(module: str) -> str:
    return module.rpartition(".")[2]
