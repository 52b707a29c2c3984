"""From an adapter's files to its first card: check everything, then write down what is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub._files import read_bounded
from adapterhub.base.fingerprint import BaseFingerprint, base_shapes
from adapterhub.base.locating import DEMO_BASE, demo_base_folder, locate_base
from adapterhub.errors import AdapterIncompatibleError
from adapterhub.peft_format.checks import Inspection, check_fit, inspect_adapter
from adapterhub.registry.cards import (
    CARD_FILE,
    MAX_CARD_BYTES,
    AdapterCard,
    BaseInfo,
    CardFields,
    PeftInfo,
    now,
)
from adapterhub.registry.model_card import read_model_card
from adapterhub.registry.sources import Origin, copy_adapter


def take_in(
    origin: Origin,
    staged: Path,
    name: str,
    *,
    base: str | Path | None,
    quantization: str | None,
    force: bool,
    fields: Mapping[str, Any],
) -> AdapterCard:
    """Copies an adapter's files, checks the copy and drafts its card.

    What the caller says counts first, then the card that came with the adapter (from another registry), then
    its config, then its model card.

    Args:
        origin: The adapter's files.
        staged: An empty folder for the copy.
        name: The adapter's name.
        base: The base to check against, as `locate_base` takes it.
        quantization: How the base was stored in training.
        force: Accept a base other than the one that the adapter's card records.
        fields: What the caller sets, as in `CardFields`.

    Returns:
        The card, as version 1; the store gives the number.

    Raises:
        AdapterInvalidError: The files are damaged or unsafe.
        AdapterIncompatibleError: The adapter cannot be served, or not on this base.
        ConfigError: A field or the base is wrong.
    """
    left_behind = copy_adapter(origin, staged)
    found = inspect_adapter(staged)
    earlier = _earlier_card(origin.folder)
    described, base_name = read_model_card(staged)
    recorded = earlier.base if earlier else _base_of_config(found, base_name)
    info, doubts = _check_base(base, recorded, found, force)
    card = AdapterCard(
        name=name,
        version=1,
        digest=found.digest,
        source=origin.source,
        base=info.model_copy(update={"quantization": quantization or info.quantization}),
        peft=PeftInfo(**found.config.settings.model_dump(), dtype=found.dtype, size_bytes=found.size_bytes),
        warnings=(*left_behind, *found.warnings, *doubts),
        created_at=(moment := now()),
        updated_at=moment,
    )
    return card.changed({**(_carried(earlier) if earlier else described), **fields})


def _earlier_card(folder: Path) -> AdapterCard | None:
    path = folder / CARD_FILE
    return AdapterCard.from_json(read_bounded(path, MAX_CARD_BYTES)) if path.exists() else None


def _carried(card: AdapterCard) -> dict[str, Any]:
    return {
        field: getattr(card, field) for field in CardFields.__annotations__ if field in card.model_fields_set
    }


def _base_of_config(found: Inspection, model_card_base: str | None) -> BaseInfo:
    return BaseInfo(name=found.config.base_name or model_card_base, revision=found.config.base_revision)


def _check_base(
    base: str | Path | None, recorded: BaseInfo, found: Inspection, force: bool
) -> tuple[BaseInfo, tuple[str, ...]]:
    """The base to write on the card, and what is doubtful about it."""
    if base is None:
        return recorded, ("its shapes were not checked against a base",)
    revision = recorded.revision if str(base) == recorded.name else None
    folder = locate_base(base, revision=revision)
    check_fit(found.modules, base_shapes(folder), found.config.settings)
    fingerprint = BaseFingerprint.of(folder)
    difference = recorded.fingerprint.mismatch(fingerprint) if recorded.fingerprint else None
    if difference and not force:
        raise AdapterIncompatibleError(
            f"The adapter was trained on another base: {difference}.",
            hint="Name the base that it was trained on; force=True registers it with a warning.",
        )
    doubts = (f"registered by force for another base than its own: {difference}",) if difference else ()
    name = _base_name(base, folder) or recorded.name or str(base)
    kept = recorded.quantization
    return BaseInfo(name=name, revision=revision, fingerprint=fingerprint, quantization=kept), doubts


def _base_name(base: str | Path, folder: Path) -> str | None:
    """The name that means this base on every machine, if it has one."""
    if folder == demo_base_folder():
        return DEMO_BASE
    return None if Path(base).expanduser().is_dir() else str(base)
