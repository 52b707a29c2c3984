"""Finding the base that a card names on this machine."""

from __future__ import annotations

from pathlib import Path

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.locating import locate_base
from adapterhub.errors import ConfigError
from adapterhub.registry.cards import BaseInfo


def local_base(base: BaseInfo) -> Path | None:
    """The folder of a card's base, without network.

    Args:
        base: As on the card.

    Returns:
        None if it is not on this machine, or if what is there under its name is another base.
    """
    if base.name is None:
        return None
    try:
        folder = locate_base(base.name, revision=base.revision, local_files_only=True)
        known = base.fingerprint
        return None if known and known.mismatch(BaseFingerprint.of(folder)) else folder
    except ConfigError:
        return None
