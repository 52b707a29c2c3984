"""Importing an adapter: its files are copied and checked, and its first card is drafted from what they record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.fit import check_against_base
from adapterhub.base.locating import DEMO_BASE, demo_base_folder, is_local_base, locate_base
from adapterhub.errors import AdapterIncompatibleError
from adapterhub.peft_format.checks import AdapterInfo, inspect_adapter
from adapterhub.registry.cards import (
    AdapterCard,
    BaseInfo,
    PeftInfo,
    PromptProfile,
    now,
)
from adapterhub.registry.imported_card import read_imported_card, taken_fields, warn_of_rest
from adapterhub.registry.local_base import local_base
from adapterhub.registry.model_card import read_model_card
from adapterhub.registry.prompt_files import read_prompt_profile
from adapterhub.registry.sources import AdapterFiles, copy_adapter


def import_adapter(
    files: AdapterFiles,
    staging: Path,
    name: str,
    *,
    base: str | Path | None,
    quantization: str | None,
    force: bool,
    trust_card: bool,
    fields: Mapping[str, Any],
) -> AdapterCard:
    """Copies an adapter's files into the staging folder, checks the copy and drafts its card.

    Of several values for a field, or for a setting of a group such as `prompt`, the first counts: the caller's, that
    of the `card.json` next to the files (see `imported_card`; a version of another registry has one), that of
    `adapter_config.json` or of the tokenizer's files, that of the model card.

    Args:
        files: Where the adapter's files are.
        staging: An empty folder for the copy.
        name: The adapter's name.
        base: The base to check against, as for `locate_base`; None skips that check and adds a warning to the card.
        quantization: How the base was stored in training.
        force: Accept a base other than the recorded one, with a warning on the card.
        trust_card: Take every field of the `card.json`, not only those that describe the adapter.
        fields: Fields that the caller sets, as in `CardFields`.

    Returns:
        The card with version 1; the store sets the number.

    Raises:
        AdapterInvalidError: The files are damaged or unsafe.
        AdapterIncompatibleError: The adapter cannot be served, or not on this base.
        InvalidRequestError: A field cannot be set, or not to this value.
        ConfigError: The base cannot be found or read.
    """
    skipped = copy_adapter(files, staging)
    info = inspect_adapter(staging)
    source_card, unused = read_imported_card(files.folder, trusted=trust_card)
    if source_card and not trust_card:
        unused = (*unused, *warn_of_rest(source_card, fields))
    model_card_fields, model_card_base = read_model_card(staging)
    recorded = source_card.base if source_card else _base_of_config(info, model_card_base)
    folder = None if base is None else locate_base(base, revision=recorded.revision_of(base))
    checked_base, warnings = _check_base(base, folder, recorded, info, staging, force)
    prompt, told = read_prompt_profile(staging, folder, force=force)
    created_at = now()
    card = AdapterCard(
        name=name,
        version=1,
        digest=info.digest,
        source=files.source,
        base=checked_base.model_copy(update={"quantization": quantization or checked_base.quantization}),
        peft=PeftInfo(**info.config.settings.model_dump(), dtype=info.dtype, size_bytes=info.size_bytes),
        prompt=prompt,
        warnings=(*skipped, *unused, *info.warnings, *warnings, *told),
        created_at=created_at,
        updated_at=created_at,
    )
    described = taken_fields(source_card, trusted=trust_card) if source_card else model_card_fields
    known = (
        {"source": files.source} if files.source else {}
    )  # what was downloaded outweighs what a card claims
    card = card.changed({**described, **known})
    return card.changed({**fields, **_prompt_changes(card.prompt, fields)})


def _prompt_changes(known: PromptProfile, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the caller sets of the prompt profile; the rest of it stays, and stops add up."""
    given = fields.get("prompt")
    if isinstance(given, PromptProfile):
        given = given.model_dump(exclude_unset=True)
    if not isinstance(given, Mapping) or not isinstance(given.get("stop"), list | tuple):
        return {"prompt": given} if "prompt" in fields else {}
    return {"prompt": {**given, "stop": [*known.stop, *given["stop"]]}}


def _base_of_config(info: AdapterInfo, model_card_base: str | None) -> BaseInfo:
    return BaseInfo(name=info.config.base_name or model_card_base, revision=info.config.base_revision)


def _check_base(
    base: str | Path | None,
    folder: Path | None,
    recorded: BaseInfo,
    info: AdapterInfo,
    adapter: Path,
    force: bool,
) -> tuple[BaseInfo, tuple[str, ...]]:
    """The base to write on the card, and warnings about it."""
    if base is None or folder is None:
        return recorded, ("its shapes were not checked against a base",)
    warnings = check_against_base(info, adapter, folder)
    fingerprint = BaseFingerprint.of(folder)
    difference = recorded.fingerprint.mismatch(fingerprint) if recorded.fingerprint else None
    if difference and not force:
        raise AdapterIncompatibleError(
            f"The adapter was trained on another base: {difference}.",
            hint="Name the base that it was trained on; force=True registers it with a warning.",
        )
    if difference:
        warnings += (f"registered with force for a base that it was not trained on: {difference}",)
    if recorded.fingerprint and recorded.fingerprint.has_other_template(fingerprint):
        warnings += ("the base's chat template is not the one that the adapter was trained with",)
    checked = BaseInfo(
        name=str(base),
        revision=recorded.revision_of(base),
        fingerprint=fingerprint,
        quantization=recorded.quantization,
    )
    return checked.model_copy(update=_name_on_card(base, folder, checked, recorded)), warnings


def _name_on_card(
    base: str | Path, folder: Path, checked: BaseInfo, recorded: BaseInfo
) -> dict[str, str | None]:
    """The fields that lead to the base that was checked, from any folder and if possible on any machine."""
    if folder == demo_base_folder():
        return {"name": DEMO_BASE, "revision": None}
    if not is_local_base(base):
        return {}  # a hub id
    names = {"name": recorded.name, "revision": recorded.revision}
    found = local_base(checked.model_copy(update=names))
    if found and recorded.name and not is_local_base(recorded.name):
        return names  # a hub id, of which the folder is a copy
    return {"name": str(Path(base).expanduser().resolve()), "revision": None}
