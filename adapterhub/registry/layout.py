"""How a registry looks on disk, and reading it.

    <root>/<name>/<version>/   adapter_config.json, adapter_model.safetensors, ..., card.json
    <root>/<name>/refs.json    aliases, and the next version's number once one has been removed
    <root>/.staging/           what is being written; never read
    <root>/.lock               held while numbers are given and folders are renamed

Hidden entries are not part of the registry, nor are symbolic links.
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
    """What `refs.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    aliases: dict[str, PositiveInt] = {}
    """Alias -> version."""
    next_version: PositiveInt = 1
    """No version below this number is given any more."""

    def pointing_to(self, version: int) -> tuple[str, ...]:
        """The aliases of a version."""
        return tuple(sorted(alias for alias, target in self.aliases.items() if target == version))

    def without(self, versions: tuple[int, ...]) -> Refs:
        """What is left once some versions are removed."""
        kept = {alias: target for alias, target in self.aliases.items() if target not in versions}
        return Refs(aliases=kept, next_version=max(self.next_version, *(version + 1 for version in versions)))

    def to_json(self) -> bytes:
        """The content of `refs.json`."""
        return self.model_dump_json(indent=2, exclude_defaults=True).encode() + b"\n"


@dataclass(frozen=True)
class Layout:
    """The folder of a registry, read afresh on every call: other processes may write to it.

    Attributes:
        root: The folder; it need not exist.
    """

    root: Path

    def home(self, name: str) -> Path:
        """The folder of an adapter."""
        return self.root / name

    def folder(self, name: str, version: int) -> Path:
        """The folder of a version."""
        return self.root / name / str(version)

    def names(self) -> list[str]:
        """The names of all adapters, in alphabetical order; some may have no version left."""
        return sorted(name for name in _folders(self.root) if _is_name(name))

    def versions(self, name: str) -> tuple[int, ...]:
        """The numbers of an adapter's versions, ascending."""
        return tuple(sorted(int(entry) for entry in _folders(self.home(name)) if _is_number(entry)))

    def refs(self, name: str) -> Refs:
        """An adapter's aliases.

        Raises:
            AdapterInvalidError: The file is damaged.
        """
        path = self.home(name) / REFS_FILE
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
        """The card of a version, with its aliases filled in.

        Raises:
            AdapterInvalidError: It is missing or damaged, or belongs to another version.
        """
        place = f"{name}/{version}"
        try:
            card = AdapterCard.from_json(read_bounded(self.folder(name, version) / CARD_FILE, MAX_CARD_BYTES))
        except AdapterInvalidError as error:
            raise AdapterInvalidError(f"In {place}: {error.message}", hint=error.hint) from error
        if (card.name, card.version) != (name, version):
            raise AdapterInvalidError(
                f"In {place}: {CARD_FILE} is the card of {card.ref}.",
                hint="Folders are not to be renamed by hand; register a copy under the new name.",
            )
        aliases = refs.pointing_to(version)
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
