"""A base's name as an export publishes it: without folders of this machine, and linked only if the Hub can have it."""

from __future__ import annotations

from pathlib import Path

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.locating import DEMO_BASE, REAL_DEMO_BASE, is_local_base
from adapterhub.registry.cards import AdapterCard

_HUB_CACHE = "models--"  # its folders: models--organisation--name/snapshots/commit


def base_name(folder: Path, fingerprint: BaseFingerprint, card: AdapterCard | None) -> str:
    """The name of a base in a folder: the card's, if that is the same base, else the Hub's or the folder's own.

    Args:
        folder: The base's folder.
        fingerprint: The base's.
        card: That of an adapter that is exported with it.
    """
    named = public_base(card) if card else None
    recorded = card.base.fingerprint if card else None
    if named and not (recorded and recorded.mismatch(fingerprint)):
        return named
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith(_HUB_CACHE):
        return cached.removeprefix(_HUB_CACHE).replace("--", "/")
    return folder.absolute().name


def public_base(card: AdapterCard) -> str | None:
    """The base's name as `public_name`."""
    return public_name(card.base.name) if card.base.name else None


def public_name(name: str) -> str:
    """A base's name without the folders of this machine, where they mean something only here."""
    is_path = name.startswith(("/", "~", ".")) or is_local_base(name)
    return Path(name).name if is_path else name


def is_hub_id(name: str) -> bool:
    """Whether the name can be that of a repository on the Hub: it is no folder of this machine and no demo base."""
    return name == public_name(name) and name not in (DEMO_BASE, REAL_DEMO_BASE)
