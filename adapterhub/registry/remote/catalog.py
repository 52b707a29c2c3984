"""The cards and aliases of a store in memory: one consistent listing, read again only where an object has changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial

from pydantic import ValidationError

from adapterhub.errors import AdapterInvalidError, InvalidRequestError, describe_validation
from adapterhub.registry.cards import CARD_FILE, MAX_CARD_BYTES, AdapterCard
from adapterhub.registry.layout import REFS_FILE
from adapterhub.registry.references import check_name
from adapterhub.registry.refs import MAX_REFS_BYTES, Refs
from adapterhub.registry.remote.manifest import MANIFESTS, claimed_version
from adapterhub.registry.remote.store import Store, StoredObject

_CARD = re.compile(rf"([^/]+)/([1-9][0-9]{{0,8}})/{re.escape(CARD_FILE)}")
_REFS = re.compile(rf"([^/]+)/{re.escape(REFS_FILE)}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_READERS = 16


@dataclass(frozen=True)
class _Read:
    """What an object was parsed to, or why it could not be."""

    tag: str
    content: AdapterCard | Refs | AdapterInvalidError


@dataclass(frozen=True)
class _Adapter:
    """What is in a store of one adapter; nothing in it changes.

    Attributes:
        objects: The listing of its folder and of its claims: path -> object.
        read: Its cards and aliases: path -> what was read.
    """

    objects: Mapping[str, StoredObject]
    read: Mapping[str, _Read]

    @cached_property
    def is_whole(self) -> bool:
        """Whether every card and `refs.json` of the listing was read, so that none has to be tried again."""
        return all(path in self.read and self.read[path].tag for path in self.objects if _is_catalogued(path))

    @cached_property
    def refs(self) -> Refs | AdapterInvalidError:
        """Its aliases, or why they cannot be read."""
        found = next((read.content for path, read in self.read.items() if _REFS.fullmatch(path)), None)
        return found if isinstance(found, Refs | AdapterInvalidError) else Refs()

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of its versions that have a card and are not removed."""
        removed = self.refs.removed if isinstance(self.refs, Refs) else ()
        numbers = {int(match[2]) for path in self.read if (match := _CARD.fullmatch(path))}
        return tuple(sorted(numbers.difference(removed)))

    @cached_property
    def claims(self) -> tuple[int, ...]:
        """The numbers that writers have claimed."""
        return tuple(sorted(claim[1] for path in self.objects if (claim := claimed_version(path))))

    @cached_property
    def folders(self) -> frozenset[int]:
        """The numbers of its folders in which there is anything."""
        paths = (path for path in self.objects if not claimed_version(path))
        parts = (path.partition("/")[2].partition("/")[0] for path in paths)
        return frozenset(int(part) for part in parts if _NUMBER.fullmatch(part))


_NOTHING = _Adapter({}, {})


@dataclass(frozen=True)
class RemoteCatalog:
    """The adapters of a store at one time; nothing in it changes."""

    _adapters: Mapping[str, _Adapter] = field(default_factory=dict)

    def names(self) -> list[str]:
        """As `Layout.names`."""
        return sorted(name for name, adapter in self._adapters.items() if adapter.read)

    def versions(self, name: str) -> tuple[int, ...]:
        """As `Layout.versions`: those with a card that are not removed."""
        return self._of(name).numbers

    def refs(self, name: str) -> Refs:
        """As `Layout.refs`."""
        refs = self._of(name).refs
        if isinstance(refs, AdapterInvalidError):
            raise refs
        return refs

    def card(self, name: str, version: int, refs: Refs) -> AdapterCard:
        """As `Layout.card`."""
        folder = f"{name}/{version}"
        read = self._of(name).read.get(f"{folder}/{CARD_FILE}")
        if read is None or isinstance(read.content, Refs):
            raise AdapterInvalidError(f"In {folder}: there is no such folder.")
        if isinstance(read.content, AdapterInvalidError):
            raise read.content
        aliases = refs.aliases_of(version)
        return read.content.model_copy(update={"aliases": aliases}) if aliases else read.content

    def objects(self, name: str, version: int) -> list[str]:
        """The paths of what is in a version's folder."""
        return [path for path in self._of(name).objects if path.startswith(f"{name}/{version}/")]

    def highest_number(self, name: str) -> int:
        """The highest number that a version has or had, or that a writer has claimed; else 0."""
        return max((*self._of(name).folders, *self._of(name).claims), default=0)

    def claimed_names(self) -> list[str]:
        """As `names`, and those of which there are claims alone."""
        return sorted(name for name, adapter in self._adapters.items() if adapter.read or adapter.claims)

    def unfinished(self, name: str) -> tuple[int, ...]:
        """The numbers of versions whose writer has not written the card yet, or has died."""
        known = {*self.versions(name), *self.refs(name).removed}
        return tuple(version for version in self._of(name).claims if version not in known)

    def leftovers(self, name: str) -> tuple[int, ...]:
        """The numbers of removed versions of which there are objects: they are being deleted, or their remover died."""
        return tuple(sorted(self._of(name).folders.intersection(self.refs(name).removed)))

    def _of(self, name: str) -> _Adapter:
        return self._adapters.get(name, _NOTHING)


def read_catalog(store: Store, previous: RemoteCatalog) -> RemoteCatalog:
    """Lists a store and reads the cards and aliases that are new or have changed.

    Args:
        store: The store.
        previous: What was read before.
    """
    return RemoteCatalog(_read_changed(store, previous, _by_name(store.objects())))


def read_adapter(store: Store, previous: RemoteCatalog, name: str) -> RemoteCatalog:
    """As `read_catalog` of one adapter, at a cost that does not depend on how many others there are.

    Args:
        store: The store.
        previous: What was read before; the other adapters are taken from it.
        name: The adapter.
    """
    objects = {**store.objects(name), **store.objects(f"{MANIFESTS}/{name}")}
    others = {other: adapter for other, adapter in previous._adapters.items() if other != name}
    listed = {other: found for other, found in _by_name(objects).items() if other == name}
    return RemoteCatalog({**others, **_read_changed(store, previous, listed)})


def _by_name(objects: Mapping[str, StoredObject]) -> dict[str, dict[str, StoredObject]]:
    """The objects of each adapter, with its claims."""
    found: dict[str, dict[str, StoredObject]] = {}
    for path, stored in objects.items():
        claim = claimed_version(path)
        found.setdefault(claim[0] if claim else path.partition("/")[0], {})[path] = stored
    return {name: own for name, own in found.items() if _is_name(name)}


def _read_changed(
    store: Store, previous: RemoteCatalog, listed: Mapping[str, Mapping[str, StoredObject]]
) -> dict[str, _Adapter]:
    """The adapters of a listing; what has not changed is taken from `previous`."""
    same = {
        name: old
        for name, old in previous._adapters.items()
        if old.is_whole and old.objects == listed.get(name)
    }
    kept = {
        path: old
        for name in listed.keys() - same.keys()
        for path, old in previous._of(name).read.items()
        if old.tag and listed[name].get(path) == previous._of(name).objects[path]
    }
    missing = [
        (path, found)
        for name in listed.keys() - same.keys()
        for path, found in listed[name].items()
        if path not in kept and _is_catalogued(path)
    ]
    with ThreadPoolExecutor(_READERS, thread_name_prefix="adapterhub-cards") as readers:
        read = kept | {
            path: content for path, content in readers.map(partial(_read, store), missing) if content
        }
    changed = listed.keys() - same.keys()
    return same | {
        name: _Adapter(listed[name], {path: read[path] for path in listed[name] if path in read})
        for name in changed
    }


def _read(store: Store, listed: tuple[str, StoredObject]) -> tuple[str, _Read | None]:
    """Reads and parses an object; None if it is not there any more, as where a listing lags behind.

    If it has been replaced since it was listed, the next listing shows that, and it is read again.
    """
    path, found = listed
    is_card = path.endswith(f"/{CARD_FILE}")
    try:
        # Stores refuse a request for a part of an empty object.
        content = store.content(path, MAX_CARD_BYTES if is_card else MAX_REFS_BYTES) if found.size else b""
    except FileNotFoundError:
        return path, None
    except AdapterInvalidError as error:
        return path, _Read("", error)
    try:
        return path, _Read(found.tag, parse_card(path, content) if is_card else parse_refs(path, content))
    except AdapterInvalidError as error:
        return path, _Read(found.tag, error)


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


def _is_catalogued(path: str) -> bool:
    match = _CARD.fullmatch(path) or _REFS.fullmatch(path)
    return match is not None and _is_name(match[1])


def _is_name(text: str) -> bool:
    try:
        return bool(check_name(text))
    except InvalidRequestError:
        return False
