"""How a base is named in what is published: without the folders of this machine, and linked if it is on the Hub."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import Any

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.locating import is_local_base
from adapterhub.registry.cards import AdapterCard
from adapterhub.registry.hub_address import HubAddress

_CACHED = "models--"  # the Hub's cache: models--organisation--name/snapshots/commit


def public_base(card: AdapterCard) -> str | None:
    """The name of a card's base; of one in a folder that folder's name. None if the card has none.

    Args:
        card: The adapter's card.
    """
    name = card.base.name
    if name is None:
        return None
    is_path = name.startswith(("/", "~", ".")) or "\\" in name or is_local_base(name)
    return PureWindowsPath(name).name if is_path else name  # which has both separators


def base_name(card: AdapterCard | None, folder: Path, fingerprint: BaseFingerprint) -> str:
    """The name of the base that a model was made from.

    Args:
        card: The adapter's card, whose name of the base is taken if it is this base.
        folder: The base's folder, else; in the Hub's cache it has the repository's name.
        fingerprint: The base's.
    """
    recorded = card.base.fingerprint if card else None
    named = public_base(card) if card else None
    if named and not (recorded and recorded.mismatch(fingerprint)):
        return named
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith(_CACHED):
        return cached.removeprefix(_CACHED).replace("--", "/")
    return folder.absolute().name


def base_link(name: str | None, relation: str) -> dict[str, Any]:
    """The fields of a model card that link to the base; none if its name is not a repository's, as `organisation/name`.

    Args:
        name: From `public_base` or `base_name`.
        relation: In the Hub's words: `adapter`, `merge` or `quantized`.
    """
    address = HubAddress.parse(name) if name else None
    if address is None or address.repo != name:
        return {}
    return {"base_model": address.repo, "base_model_relation": relation}
