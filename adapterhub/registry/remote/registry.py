"""A registry in a store: cards and aliases in memory, kept current by polling; files downloaded when they are used."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Unpack

from adapterhub._files import scratch_folder
from adapterhub.capabilities.features import AdapterFeatures
from adapterhub.errors import (
    AdapterExistsError,
    AdapterHubError,
    RegistryError,
    RegistryLockedError,
    RegistryUnavailableError,
)
from adapterhub.peft_format.checks import check_digest, inspect_adapter
from adapterhub.registry.cards import CARD_FILE, MAX_CARD_BYTES, AdapterCard, CardFields
from adapterhub.registry.importing import import_adapter
from adapterhub.registry.layout import REFS_FILE, Catalog
from adapterhub.registry.references import Ref, check_name
from adapterhub.registry.refs import MAX_REFS_BYTES, Refs
from adapterhub.registry.remote.catalog import (
    RemoteCatalog,
    parse_card,
    parse_refs,
    read_adapter,
    read_catalog,
)
from adapterhub.registry.remote.errors import ConflictError
from adapterhub.registry.remote.fetching import fetch_features, fetch_small_files, fetch_version
from adapterhub.registry.remote.file_cache import FileCache
from adapterhub.registry.remote.polling import Poller
from adapterhub.registry.remote.store import Store
from adapterhub.registry.sources import Downloader, locate_adapter
from adapterhub.registry.store import AdapterRegistry, Problems
from adapterhub.registry.verify import Problem

REFRESH_S = 2.0
"""Seconds between two looks at the store."""
RELIST_S = 300.0
"""Seconds after which everything is listed again, also where the stamp says that nothing has changed."""
_ATTEMPTS = 10
_CLAIMS = 100  # numbers that a writer tries


class RemoteRegistry(AdapterRegistry):
    """An `AdapterRegistry` in a store such as S3; make one with `open_registry`.

    Cards and aliases are held in memory. A thread looks for changes every `refresh` seconds, at the cost of one small
    request; while the store does not answer, the last known state is used. The files of a version are downloaded by
    `folder`, compared with the card's digest and kept in a cache on this machine.

    Writers need no lock: a version's number is claimed by creating an object that must not exist, and aliases and cards
    are replaced only if nobody has changed them since they were read. A store that has no such writes is only read.

    Args:
        store: The objects.
        url: The registry's URL, without secrets.
        root: A folder of this machine for downloaded versions and for what a hub saves beside a registry.
        refresh: Seconds between two looks at the store.
        max_cache_bytes: Above it the versions that were used longest ago leave the cache.
        reopen: Opens the store again after a fork, as S3's library needs it.
    """

    def __init__(
        self,
        store: Store,
        url: str,
        root: Path,
        *,
        refresh: float = REFRESH_S,
        max_cache_bytes: int,
        reopen: Callable[[], Store] | None = None,
    ) -> None:
        super().__init__(root)
        self._opened, self._reopen, self._url, self._period = store, reopen, url, refresh
        self._cache = FileCache(root / "files", max_cache_bytes)
        self._known: RemoteCatalog | None = None
        self._stamp, self._changes, self._listed_at = "", 0, 0.0
        self._poller: Poller | None = None
        self._begin_in_process()

    def _begin_in_process(self) -> None:
        """Makes what no fork takes along: locks that a thread may have held."""
        self._refreshing, self._starting = threading.Lock(), threading.Lock()
        self._process_id = os.getpid()  # last: who sees it must not take an old lock

    def _check_process(self) -> None:
        """Begins anew after a fork, with another connection to the store."""
        if self._process_id != os.getpid():
            self._opened = self._reopen() if self._reopen else self._opened
            self._begin_in_process()

    @property
    def _store(self) -> Store:
        self._check_process()
        return self._opened

    @property
    def location(self) -> str:
        """The registry's URL."""
        return self._url

    @property
    def _catalog(self) -> Catalog:
        return self._current()

    def _current(self) -> RemoteCatalog:
        self._check_process()
        known = self._known or self._first_read()
        if self._poller is None or not self._poller.is_running:  # at first, and after a fork
            with self._starting:
                if self._poller is None or not self._poller.is_running:
                    self._poller = Poller(self.refresh_if_changed, self._period)
        return known

    def _first_read(self) -> RemoteCatalog:
        """As `refresh`, but of threads that come at the same time one reads and the others wait for it."""
        with self._starting:
            return self._known or self.refresh()

    def refresh(self) -> RemoteCatalog:
        """Reads what has changed in the store now, rather than within the refresh period.

        Raises:
            RegistryUnavailableError: The store does not answer.
            RegistryError: It refuses.
        """
        self._check_process()
        with self._refreshing:
            stamp = self._store.stamp()  # before the listing, so that a change in between is seen next time
            catalog = self._take(read_catalog(self._store, self._known or RemoteCatalog()))
            self._stamp, self._listed_at = stamp, time.monotonic()
            return catalog

    def _refresh_adapter(self, name: str) -> RemoteCatalog:
        """As `refresh`, of one adapter, for a change of it; the thread that looks for changes still reads the rest."""
        self._check_process()
        if self._known is None:
            return self.refresh()
        with self._refreshing:
            self._store.stamp()  # a repository is read at the commit that it has seen last
            return self._take(read_adapter(self._store, self._known, name))

    def _take(self, catalog: RemoteCatalog) -> RemoteCatalog:
        changed = catalog != self._known
        self._known = catalog
        self._changes += changed  # last: who sees the new number must not read the old catalog
        return catalog

    def refresh_if_changed(self) -> None:
        """As `refresh`, if the store's stamp has changed or the last listing is `RELIST_S` old."""
        if self._store.stamp() != self._stamp or time.monotonic() - self._listed_at > RELIST_S:
            self.refresh()

    def close(self) -> None:
        """Ends the thread that looks for changes; the next read starts another."""
        if self._poller is not None:
            self._poller.stop()

    def stamp(self) -> tuple[int, ...]:
        """A value that changes with every change that this object has seen in the store."""
        self._current()
        return (self._changes,)

    def folder(self, card: AdapterCard) -> Path:
        """The folder with a version's files, which are downloaded at the first call and compared with its digest.

        Raises:
            AdapterInvalidError: The files are not those that were registered.
            AdapterNotFoundError: The version has been removed.
            RegistryError: The store does not answer or refuses, or the cache cannot be written.
        """
        return self._cache.get(_key(card), partial(fetch_version, self._store, card))

    def small_files(self, card: AdapterCard) -> Path:
        """As `folder`, but weights that are not here are not downloaded, and no digest is compared."""
        if self.expected_folder(card).is_dir():
            return self.folder(card)  # which marks it as used, so that it is not removed while it is read
        return self._cache.get(f"{_key(card)}-small", partial(fetch_small_files, self._store, card))

    def features(self, card: AdapterCard) -> AdapterFeatures:
        """As `AdapterRegistry.features`, from the config and the first bytes of the weights; raises as `folder`."""
        if self.expected_folder(card).is_dir():
            return AdapterFeatures.of_folder(self.folder(card))
        return fetch_features(self._store, card)

    def expected_folder(self, card: AdapterCard) -> Path:
        """Where `folder` puts a version's files."""
        return self._cache.path(_key(card))

    def register(
        self,
        name: str,
        path: str | Path,
        *,
        base: str | Path | None = None,
        quantization: str | None = None,
        force: bool = False,
        trust_card: bool = False,
        dry_run: bool = False,
        download: Downloader | None = None,
        **fields: Unpack[CardFields],
    ) -> AdapterCard:
        """Checks an adapter and uploads it as the next version of a name; as `AdapterRegistry.register`."""
        check_name(name)
        files = locate_adapter(path, download=download)
        with scratch_folder(RegistryError, f"{path} could not be checked") as staging:
            draft = import_adapter(
                files,
                staging,
                name,
                base=base,
                quantization=quantization,
                force=force,
                trust_card=trust_card,
                fields=fields,
            )
            draft.to_json()
            return draft if dry_run else self._publish_next(draft, staging)

    def was_removed(self, name: str, version: int) -> bool:
        """Whether there was such a version; as `AdapterRegistry.was_removed`."""
        catalog = self._current()
        is_unfinished = version in catalog.unfinished(name)
        return version in catalog.refs(name).removed or (
            super().was_removed(name, version) and not is_unfinished
        )

    def _publish_next(self, draft: AdapterCard, staging: Path) -> AdapterCard:
        """Publishes under the first number that no writer has claimed."""
        catalog = self._refresh_adapter(draft.name)
        refs = catalog.refs(draft.name)
        first = max(catalog.highest_number(draft.name), refs.next_version - 1) + 1
        for version in range(first, first + _CLAIMS):
            card = draft.model_copy(update={"version": version})
            try:
                self._upload(card, staging, resume=False)
            except AdapterExistsError:
                continue
            return card
        raise RegistryLockedError(
            f"{draft.name!r} could not be registered: {_CLAIMS} numbers were taken by others.",
            hint="Try again.",
        )

    def publish(self, card: AdapterCard, folder: Path, *, resume: bool = False) -> None:
        """Uploads a version under its own number.

        Args:
            card: Its card.
            folder: Its files.
            resume: Go on with an unfinished upload of the same files.

        Raises:
            AdapterExistsError: There is, or was, another version of that number.
            AdapterInvalidError: The files are not those that the card is of.
        """
        check_digest(card.ref, card.digest, inspect_adapter(folder).digest)
        self._refresh_adapter(card.name)
        if self.was_removed(card.name, card.version):
            raise self._taken(card)
        self._upload(card, folder, resume=resume)

    def _upload(self, card: AdapterCard, folder: Path, *, resume: bool) -> None:
        try:
            self._store.publish(folder, card.to_json(), f"{card.name}/{card.version}", resume=resume)
        except ConflictError as error:
            raise self._taken(card) from error
        self._refresh_after_change(card.name)
        if self._known and card.version in self._known.refs(card.name).removed:  # by another writer meanwhile
            raise self._taken(card)

    def revise(self, ref: str, change: Callable[[AdapterCard], CardFields]) -> AdapterCard:
        """Sets fields that are computed from the card; it is called again if another writer was first.

        Raises:
            RegistryLockedError: Other writers were first every time; a retry may succeed.
        """
        self._refresh_adapter(Ref.parse(ref).name)
        card = self.get(ref)
        path = f"{card.name}/{card.version}/{CARD_FILE}"

        def edit(content: bytes | None) -> bytes:
            if content is None:
                raise self._not_found(Ref(card.name, card.version), self._current().versions(card.name))
            current = parse_card(path, content)
            return current.changed(change(current)).to_json()

        content = self._edit(path, edit, MAX_CARD_BYTES)
        return parse_card(path, content).model_copy(update={"aliases": card.aliases})

    def remove(self, ref: str, *, force: bool = False) -> None:
        """Removes a version, or with a bare name every version; as `AdapterRegistry.remove`.

        One write takes it from the readers; deleting its objects comes after that. `name@3` also removes what a writer
        or a remover that died has left of version 3.
        """
        parsed = Ref.parse(ref)
        catalog = self._refresh_adapter(parsed.name)
        left = {*catalog.unfinished(parsed.name), *catalog.leftovers(parsed.name)}
        versions = (parsed.version,) if parsed.version in left else self._matching(parsed)

        def edit(refs: Refs) -> Refs:
            if not force:
                refs.check_unneeded(parsed.name, versions)
            removed = tuple(sorted({*refs.removed, *versions}))
            return refs.without(versions).model_copy(update={"removed": removed})

        self._edit_refs(parsed.name, (), edit)
        catalog = self._current()
        self._store.delete([path for version in versions for path in catalog.objects(parsed.name, version)])
        self._refresh_after_change(parsed.name)

    def verify(self, ref: str | None = None) -> Problems:
        """Downloads versions again and checks them, without the cache; as `AdapterRegistry.verify`."""
        self.refresh()
        if ref is None:
            return [
                problem for name in self._current().claimed_names() for problem in self._problems_of(name)
            ]
        parsed = Ref.parse(ref)
        versions = self._matching(parsed)
        if parsed.is_bare:
            return [*self._problems_of(parsed.name)]
        return [*self._version_problems(parsed.name, versions[0])]

    def _problems_of(self, name: str) -> Iterable[Problem]:
        catalog = self._current()
        versions = catalog.versions(name)
        try:
            for alias, version in catalog.refs(name).missing(versions):
                yield Problem(name, f"The alias {alias!r} points to version {version}, which does not exist.")
            for version in catalog.unfinished(name):
                yield Problem(
                    f"{name}@{version}",
                    "Its upload has not ended, or has failed; remove this version, if it has.",
                )
            for version in catalog.leftovers(name):
                yield Problem(
                    f"{name}@{version}",
                    "It was removed, and files of it are left; remove this version again.",
                )
        except AdapterHubError as error:
            yield Problem(name, error.message)
        for version in versions:
            yield from self._version_problems(name, version)

    def _version_problems(self, name: str, version: int) -> Iterable[Problem]:
        try:
            card = self._current().card(name, version, Refs())
            with scratch_folder(RegistryError, f"{card.ref} could not be checked") as folder:
                fetch_version(self._store, card, folder)
                inspect_adapter(folder)
        except AdapterHubError as error:
            yield Problem(f"{name}@{version}", error.message)

    def _refresh_after_change(self, name: str) -> None:
        """As `_refresh_adapter`; that it fails does not undo the change, which later looks will find."""
        with suppress(RegistryUnavailableError):
            self._refresh_adapter(name)

    def _edit_refs(self, name: str, required: Sequence[Ref], edit: Callable[[Refs], Refs]) -> None:
        self._refresh_adapter(name)
        for ref in required:
            self._matching(ref)
        path = f"{name}/{REFS_FILE}"

        def edited(content: bytes | None) -> bytes:
            refs = Refs() if content is None else parse_refs(path, content)
            for ref in required:  # another writer may have removed it since the store was listed
                if ref.version in refs.removed or (ref.alias and ref.alias not in refs.aliases):
                    raise self._not_found(ref, self._current().versions(name))
            return edit(refs).to_json()

        self._edit(path, edited, MAX_REFS_BYTES)

    def _edit(self, path: str, edit: Callable[[bytes | None], bytes], limit: int) -> bytes:
        """Replaces an object by what `edit` makes of it, again and again until no other writer was in between."""
        for attempt in range(_ATTEMPTS):
            try:
                content, tag = self._store.read(path, limit)
            except FileNotFoundError:
                new, tag = edit(None), None
            else:
                new = edit(content)
            try:
                self._store.replace(path, new, tag)
            except ConflictError:
                time.sleep(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311
                continue
            self._refresh_after_change(path.partition("/")[0])
            return new
        raise RegistryLockedError(
            f"{path} could not be changed: other writers were first {_ATTEMPTS} times.", hint="Try again."
        )


def _key(card: AdapterCard) -> str:
    """A folder's name in the cache; another digest is another folder."""
    return f"{card.name}-{card.version}-{card.digest.rpartition(':')[2][:16]}"
