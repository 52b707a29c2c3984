"""The cards and aliases of a store in memory: one consistent listing, read again only where an object has changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError

from adapterhub.errors import AdapterInvalidError, InvalidRequestError, describe_validation
from adapterhub.registry.cards import CARD_FILE, MAX_CARD_BYTES, AdapterCard
from adapterhub.registry.layout import MAX_REFS_BYTES, REFS_FILE
from adapterhub.registry.references import check_name
from adapterhub.registry.refs import Refs
from adapterhub.registry.remote.manifest import claimed_version
from adapterhub.registry.remote.store import Store, StoredObject

_CARD = re.compile(rf"([^/]+)/([1-9][0-9]{{0,8}})/{re.escape(CARD_FILE)}")
_REFS = re.compile(rf"([^/]+)/{re.escape(REFS_FILE)}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_READERS = 16
Content = TypeVar("Content", AdapterCard, Refs)


@dataclass(frozen=True)
class _Read:
    """What an object was parsed to, or why it could not be."""

    tag: str
    content: AdapterCard | Refs | AdapterInvalidError


@dataclass(frozen=True)
class RemoteCatalog:
    """The adapters of a store at one time; nothing in it changes.

    Attributes:
        objects: The listing: path -> object.
    """

    objects: Mapping[str, StoredObject] = field(default_factory=dict)
    _read: Mapping[str, _Read] = field(default_factory=dict)
    _versions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    _claims: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def names(self) -> list[str]:
        """As `Layout.names`."""
        return sorted(self._versions)

    def versions(self, name: str) -> tuple[int, ...]:
        """As `Layout.versions`: those with a card that are not removed."""
        return self._versions.get(name, ())

    def refs(self, name: str) -> Refs:
        """As `Layout.refs`."""
        return _content(self._read.get(f"{name}/{REFS_FILE}"), Refs) or Refs()

    def card(self, name: str, version: int, refs: Refs) -> AdapterCard:
        """As `Layout.card`."""
        folder = f"{name}/{version}"
        card = _content(self._read.get(f"{folder}/{CARD_FILE}"), AdapterCard)
        if card is None:
            raise AdapterInvalidError(f"In {folder}: there is no such folder.")
        aliases = refs.aliases_of(version)
        return card.model_copy(update={"aliases": aliases}) if aliases else card

    def highest_number(self, name: str) -> int:
        """The highest number that a version has or had, or that a writer has claimed; else 0."""
        folders = (path.split("/")[1] for path in self.objects if path.startswith(f"{name}/"))
        numbers = (int(folder) for folder in folders if _NUMBER.fullmatch(folder))
        return max((*numbers, *self._claims.get(name, ())), default=0)

    def claimed_names(self) -> list[str]:
        """As `names`, and those of which there are claims alone."""
        return sorted({*self._versions, *self._claims})

    def unfinished(self, name: str) -> tuple[int, ...]:
        """The numbers of versions whose writer has not written the card yet, or has died."""
        known = {*self.versions(name), *self.refs(name).removed}
        return tuple(version for version in self._claims.get(name, ()) if version not in known)


def read_catalog(store: Store, previous: RemoteCatalog) -> RemoteCatalog:
    """Lists a store and reads the cards and aliases that are new or have changed.

    Args:
        store: The store.
        previous: What was read before.
    """
    objects = store.objects()
    wanted = {path: found.tag for path, found in objects.items() if _is_catalogued(path)}
    kept = {path: old for path, old in previous._read.items() if old.tag and wanted.get(path) == old.tag}
    missing = sorted(wanted.keys() - kept.keys())
    with ThreadPoolExecutor(_READERS, thread_name_prefix="adapterhub-cards") as readers:
        fresh = zip(missing, readers.map(lambda path: _read(store, path), missing), strict=True)
        read = {**kept, **{path: content for path, content in fresh if content}}
    return RemoteCatalog(objects, read, _versions(read), _claims(objects))


def _read(store: Store, path: str) -> _Read | None:
    """Reads and parses an object; None if it is not there any more, as where a listing lags behind."""
    is_card = path.endswith(f"/{CARD_FILE}")
    try:
        content, tag = store.read(path, MAX_CARD_BYTES if is_card else MAX_REFS_BYTES)
    except FileNotFoundError:
        return None
    except AdapterInvalidError as error:
        return _Read("", error)
    try:
        return _Read(tag, parse_card(path, content) if is_card else parse_refs(path, content))
    except AdapterInvalidError as error:
        return _Read(tag, error)


def parse_card(path: str, content: bytes) -> AdapterCard:
    """The card at a path.

    Raises:
        AdapterInvalidError: It is no card, or that of another version.
    """
    folder = path.removesuffix(f"/{CARD_FILE}")
    try:
        card = AdapterCard.from_json(content)
    except AdapterInvalidError as error:
        raise AdapterInvalidError(f"In {folder}: {error.message}", hint=error.hint) from error
    if f"{card.name}/{card.version}" != folder:
        raise AdapterInvalidError(f"In {folder}: {CARD_FILE} is the card of {card.ref}.")
    return card


def parse_refs(path: str, content: bytes) -> Refs:
    """The aliases at a path.

    Raises:
        AdapterInvalidError: They are damaged.
    """
    try:
        return Refs.model_validate_json(content)
    except ValidationError as error:
        raise AdapterInvalidError(f"{path} cannot be read: {describe_validation(error)}.") from error


def _content(read: _Read | None, kind: type[Content]) -> Content | None:
    if read is None:
        return None
    if isinstance(read.content, AdapterInvalidError):
        raise read.content
    return read.content if isinstance(read.content, kind) else None


def _is_catalogued(path: str) -> bool:
    match = _CARD.fullmatch(path) or _REFS.fullmatch(path)
    return match is not None and _is_name(match[1])


def _is_name(text: str) -> bool:
    try:
        return bool(check_name(text))
    except InvalidRequestError:
        return False


def _versions(read: Mapping[str, _Read]) -> dict[str, tuple[int, ...]]:
    versions: dict[str, list[int]] = {}
    for path in read:
        if match := _CARD.fullmatch(path):
            versions.setdefault(match[1], []).append(int(match[2]))
        elif match := _REFS.fullmatch(path):
            versions.setdefault(match[1], [])
    return {name: _without_removed(name, numbers, read) for name, numbers in versions.items()}


def _claims(objects: Iterable[str]) -> dict[str, tuple[int, ...]]:
    claims: dict[str, list[int]] = {}
    for path in objects:
        if (claim := claimed_version(path)) and _is_name(claim[0]):
            claims.setdefault(claim[0], []).append(claim[1])
    return {name: tuple(sorted(versions)) for name, versions in claims.items()}


def _without_removed(name: str, numbers: Iterable[int], read: Mapping[str, _Read]) -> tuple[int, ...]:
    found = read.get(f"{name}/{REFS_FILE}")
    removed = found.content.removed if found and isinstance(found.content, Refs) else ()
    return tuple(sorted(set(numbers).difference(removed)))
