"""What is taken from a `card.json` next to imported files.

Whoever made the files wrote it. Its prompt profile speaks to the model, its routing draws requests to itself, and its
source and lineage are claims, so from outside only fields that describe the adapter are taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from adapterhub._files import read_bounded
from adapterhub.errors import AdapterInvalidError
from adapterhub.registry.cards import CARD_FILE, MAX_CARD_BYTES, AdapterCard, CardFields

DESCRIPTIVE_FIELDS = ("description", "tags", "task", "language", "license", "datasets", "evaluation")
"""The fields that are taken from a card that is not trusted, besides `base`, against which the adapter is checked."""

_MAX_SHOWN_CHARS = 200
_any: TypeAdapter[Any] = TypeAdapter(Any)


def read_imported_card(folder: Path, *, trusted: bool) -> tuple[AdapterCard | None, tuple[str, ...]]:
    """Reads the `card.json` of a folder whose links have been checked.

    Returns:
        The card, and warnings: a file that is no card is left out if it is not trusted.

    Raises:
        AdapterInvalidError: It is trusted, and no card.
    """
    path = folder / CARD_FILE
    if not path.exists():
        return None, ()
    try:
        # In a hub snapshot every file is a link into the cache.
        return AdapterCard.from_json(read_bounded(path, MAX_CARD_BYTES, follow_links=True)), ()
    except AdapterInvalidError as error:
        if trusted:
            raise
        return None, (f"its {CARD_FILE} was not used: {error.message.removesuffix('.')}",)


def taken_fields(card: AdapterCard, *, trusted: bool) -> dict[str, Any]:
    """The fields that a new card takes over."""
    names = CardFields.__annotations__ if trusted else DESCRIPTIVE_FIELDS
    fields = {name: getattr(card, name) for name in names if name in card.model_fields_set}
    if not trusted and "evaluation" in fields:  # anybody can write that the hub has verified a result
        fields["evaluation"] = [one.model_copy(update={"verified": None}) for one in card.evaluation]
    return fields


def warn_of_rest(card: AdapterCard, given: Mapping[str, Any]) -> Iterator[str]:
    """Describes what an untrusted card sets and what is not taken.

    Args:
        card: The imported card.
        given: The fields that the caller sets anyway.
    """
    for name in CardFields.__annotations__:
        if name not in card.model_fields_set or name in DESCRIPTIVE_FIELDS:
            continue
        value, own = getattr(card, name), given.get(name, {})
        if isinstance(value, BaseModel) and isinstance(own, Mapping):
            parts = sorted(value.model_fields_set - own.keys())
            settings = {f"{name}.{part}": getattr(value, part) for part in parts}
        else:
            settings = {} if name in given else {name: value}
        for setting, content in settings.items():
            yield f"its {CARD_FILE} sets {setting} to {_shown(content)}: not taken without trust_card"


def _shown(value: Any) -> str:
    text = json.dumps(_any.dump_python(value, mode="json"), ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[: _MAX_SHOWN_CHARS - 1]}…"
