"""The folder structure of a registry, and reading it.

    <root>/<name>/<version>/   adapter_config.json, adapter_model.safetensors, ..., card.json
    <root>/<name>/refs.json    aliases (`refs.py`), and the next version's number once a version was removed
    <root>/.staging/           unfinished writes; never read
    <root>/.lock               file lock of writers

Hidden entries are ignored. `root` may be reached through symbolic links; below it none is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from adapterhub._files import open_folder, os_errors_as, read_bounded, read_regular
from adapterhub.errors import AdapterInvalidError, InvalidRequestError, RegistryError, describe_validation
from adapterhub.registry.cards import CARD_FILE, MAX_CARD_BYTES, AdapterCard
from adapterhub.registry.references import check_name
from adapterhub.registry.refs import MAX_REFS_BYTES, Refs

REFS_FILE = "refs.json"
STAGING = ".staging"
LOCK = ".lock"


class Catalog(Protocol):
    """The adapters of a registry, as its reading methods need them; the methods of `Layout` say what each returns."""

    def names(self) -> list[str]: ...
    def versions(self, name: str) -> tuple[int, ...]: ...
    def refs(self, name: str) -> Refs: ...
    def card(self, name: str, version: int, refs: Refs) -> AdapterCard: ...


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

    @contextmanager
    def open(self, *names: str) -> Iterator[int]:
        """Opens a folder of the registry; yields a descriptor for calls that take `dir_fd`.

        Args:
            names: The path below the root; none for the root itself.

        Raises:
            FileNotFoundError: There is no such folder.
            AdapterInvalidError: A symbolic link or a file is in its place.
            RegistryError: It cannot be opened.
        """
        with ExitStack() as stack:
            try:
                descriptor = stack.enter_context(open_folder(self.root, *names))
            except FileNotFoundError:
                raise
            except NotADirectoryError as error:
                raise AdapterInvalidError(
                    f"{'/'.join(names) or str(self.root)!r} is not a folder of the registry but a link or a file.",
                    hint="The registry follows no links: put the folder itself there, or remove the entry.",
                ) from error
            except OSError as error:
                with os_errors_as(RegistryError, f"The registry {str(self.root)!r} cannot be read"):
                    raise error
            yield descriptor

    def names(self) -> list[str]:
        """The names of all adapters, sorted; one may have no version any more."""
        return sorted(name for name in self._folders() if _is_name(name))

    def versions(self, name: str) -> tuple[int, ...]:
        """The numbers of an adapter's versions, ascending.

        Raises:
            AdapterInvalidError: The adapter's folder is a symbolic link or a file.
        """
        return tuple(sorted(int(entry) for entry in self._folders(name) if _is_number(entry)))

    def highest_number(self, name: str) -> int:
        """The highest number in an adapter's folder, also that of a link or file, which is no version; else 0."""
        with self._scan(name) as entries:
            return max((int(entry.name) for entry in entries if _is_number(entry.name)), default=0)

    def _folders(self, *names: str) -> list[str]:
        with self._scan(*names) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    @contextmanager
    def _scan(self, *names: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        """The entries of a folder, none if it does not exist; raises as `open`."""
        with (
            os_errors_as(RegistryError, f"The registry {str(self.root)!r} cannot be read"),
            ExitStack() as stack,
        ):
            try:
                folder = stack.enter_context(self.open(*names))
            except FileNotFoundError:  # also if another process has just removed it
                yield iter(())
            else:
                yield stack.enter_context(os.scandir(folder))

    def refs(self, name: str) -> Refs:
        """An adapter's aliases.

        Raises:
            AdapterInvalidError: `refs.json` is damaged, or the adapter's folder is a symbolic link.
        """
        hint = "Restore it from a backup or from git."
        try:
            with self.open(name) as folder:
                return Refs.model_validate_json(read_regular(REFS_FILE, MAX_REFS_BYTES, dir_fd=folder))
        except FileNotFoundError:
            return Refs()
        except (OSError, ValidationError) as error:
            reason = describe_validation(error) if isinstance(error, ValidationError) else error.strerror
            raise AdapterInvalidError(f"{name}/{REFS_FILE} cannot be read: {reason}.", hint=hint) from error

    def special_files(self, *names: str) -> Iterator[str]:
        """The paths of links, pipes and devices below a folder of the registry, where only plain files belong."""
        with self._scan(*names) as entries:
            found = sorted((entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries)
        for name, mode in found:
            if name.startswith(".") and name not in (STAGING, LOCK):
                continue
            if stat.S_ISDIR(mode) and name != STAGING:
                yield from self.special_files(*names, name)
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                yield "/".join((*names, name))

    def card(self, name: str, version: int, refs: Refs) -> AdapterCard:
        """The card of a version, with the aliases that point to it.

        Raises:
            AdapterInvalidError: The card is missing, damaged or that of another version.
        """
        folder = f"{name}/{version}"
        try:
            with self.open(name, str(version)) as descriptor:
                content = read_bounded(CARD_FILE, MAX_CARD_BYTES, dir_fd=descriptor)
            card = AdapterCard.from_json(content)
        except FileNotFoundError as error:  # another process has just removed it
            raise AdapterInvalidError(f"In {folder}: there is no such folder.") from error
        except AdapterInvalidError as error:
            raise AdapterInvalidError(f"In {folder}: {error.message}", hint=error.hint) from error
        if (card.name, card.version) != (name, version):
            raise AdapterInvalidError(
                f"In {folder}: {CARD_FILE} is the card of {card.ref}.",
                hint="Do not rename folders by hand; register the adapter under the new name.",
            )
        aliases = refs.aliases_of(version)
        return card.model_copy(update={"aliases": aliases}) if aliases else card


def _is_number(entry: str) -> bool:
    return entry.isascii() and entry.isdigit() and not entry.startswith("0") and len(entry) < 10


def _is_name(entry: str) -> bool:
    try:
        return bool(check_name(entry))
    except InvalidRequestError:
        return False
