"""The folder structure of a registry, and reading it.

    <root>/<name>/<version>/   adapter_config.json, adapter_model.safetensors, ..., card.json
    <root>/<name>/refs.json    aliases, and the next version's number once a version was removed
    <root>/.staging/           unfinished writes; never read
    <root>/.lock               file lock of writers

Readers ignore hidden entries and symbolic links.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from adapterhub._files import read_bounded
from adapterhub.errors import AdapterInvalidError, InvalidRequestError, describe_validation
from adapterhub.registry.cards import CARD_FILE, MAX_CARD_BYTES, AdapterCard
from adapterhub.registry.references import check_name

REFS_FILE = "refs.json"
STAGING = ".staging"
LOCK = ".lock"
_MAX_REFS_BYTES = 2**20


class Refs(BaseModel):
    """The content of `refs.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    aliases: dict[str, PositiveInt] = {}
    """Alias -> version."""
    next_version: PositiveInt = 1
    """The next version gets at least this number, so that the number of a removed version is not reused."""

    def aliases_of(self, version: int) -> tuple[str, ...]:
        """The aliases of a version."""
        return tuple(sorted(alias for alias, target in self.aliases.items() if target == version))

    def without(self, versions: tuple[int, ...]) -> Refs:
        """The same after some versions were removed."""
        remaining = {alias: target for alias, target in self.aliases.items() if target not in versions}
        return Refs(
            aliases=remaining, next_version=max(self.next_version, *(version + 1 for version in versions))
        )

    def to_json(self) -> bytes:
        """The content of `refs.json`."""
        return self.model_dump_json(indent=2, exclude_defaults=True).encode() + b"\n"


@dataclass(frozen=True)
class Layout:
    """Reads a registry's folder. Nothing is cached: other processes may write to it.

    Attributes:
        root: The folder. It may not exist yet.
    """

    root: Path

    def adapter_folder(self, name: str) -> Path:
        """The folder of an adapter."""
        return self.root / name

    def version_folder(self, name: str, version: int) -> Path:
        """The folder of a version."""
        return self.root / name / str(version)

    def names(self) -> list[str]:
        """The names of all adapters, sorted; one may have no version any more."""
        return sorted(name for name in _folders(self.root) if _is_name(name))

    def versions(self, name: str) -> tuple[int, ...]:
        """The numbers of an adapter's versions, ascending."""
        return tuple(sorted(int(entry) for entry in _folders(self.adapter_folder(name)) if _is_number(entry)))

    def refs(self, name: str) -> Refs:
        """An adapter's aliases.

        Raises:
            AdapterInvalidError: `refs.json` is damaged.
        """
        path = self.adapter_folder(name) / REFS_FILE
        try:
            text = path.read_bytes() if path.stat().st_size <= _MAX_REFS_BYTES else b""
            return Refs.model_validate_json(text)
        except FileNotFoundError:
            return Refs()
        except (OSError, ValidationError) as error:
            reason = describe_validation(error) if isinstance(error, ValidationError) else error.strerror
            raise AdapterInvalidError(
                f"{name}/{REFS_FILE} cannot be read: {reason}.", hint="Restore it from a backup or from git."
            ) from error

    def card(self, name: str, version: int, refs: Refs) -> AdapterCard:
        """The card of a version, with the aliases that point to it.

        Raises:
            AdapterInvalidError: The card is missing, damaged or that of another version.
        """
        folder = f"{name}/{version}"
        try:
            card = AdapterCard.from_json(
                read_bounded(self.version_folder(name, version) / CARD_FILE, MAX_CARD_BYTES)
            )
        except AdapterInvalidError as error:
            raise AdapterInvalidError(f"In {folder}: {error.message}", hint=error.hint) from error
        if (card.name, card.version) != (name, version):
            raise AdapterInvalidError(
                f"In {folder}: {CARD_FILE} is the card of {card.ref}.",
                hint="Do not rename folders by hand; register the adapter under the new name.",
            )
        aliases = refs.aliases_of(version)
        return card.model_copy(update={"aliases": aliases}) if aliases else card


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_number(entry: str) -> bool:
    return entry.isascii() and entry.isdigit() and not entry.startswith("0") and len(entry) < 10


def _is_name(entry: str) -> bool:
    try:
        return bool(check_name(entry))
    except InvalidRequestError:
        return False
