"""The registry: a folder of named, versioned, checked adapters (`layout.py` draws it).

Everything is prepared in `.staging` and then renamed into place under the lock, so that readers need no lock:
they see a version whole or not at all, and a process killed at any moment leaves nothing but a folder in
`.staging`, which the next writer sweeps out once it is an hour old. A version's number is never given twice.
"""

from __future__ import annotations

import difflib
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias, Unpack

from filelock import FileLock, Timeout

from adapterhub._files import sync_folder, sync_tree, write_atomic
from adapterhub.errors import (
    AdapterExistsError,
    AdapterInvalidError,
    AdapterNotFoundError,
    RegistryError,
    RegistryLockedError,
)
from adapterhub.registry.cards import CARD_FILE, AdapterCard, CardFields
from adapterhub.registry.importing import take_in
from adapterhub.registry.layout import LOCK, REFS_FILE, STAGING, Layout, Refs
from adapterhub.registry.references import Ref, check_alias, check_name
from adapterhub.registry.sources import Downloader, find_origin
from adapterhub.registry.verify import Problem, verify_adapter, verify_version

_LOCK_SECONDS = 60.0
_STALE_SECONDS = 3600.0

_log = logging.getLogger(__name__)

# Inside the class, `list` is the method.
Cards: TypeAlias = list[AdapterCard]
Problems: TypeAlias = list[Problem]


class AdapterRegistry:
    """Named, versioned, checked adapters in a folder, for any number of threads and processes at once."""

    def __init__(self, root: str | Path) -> None:
        """Opens a registry.

        Args:
            root: Its folder; it is made when the first adapter is registered.
        """
        self.root = Path(root).expanduser()
        self._layout = Layout(self.root)

    def __repr__(self) -> str:
        return f"AdapterRegistry({str(self.root)!r})"

    def register(
        self,
        name: str,
        path: str | Path,
        *,
        base: str | Path | None = None,
        quantization: str | None = None,
        force: bool = False,
        download: Downloader | None = None,
        **fields: Unpack[CardFields],
    ) -> AdapterCard:
        """Checks an adapter and stores a copy of it as the next version of a name.

        Args:
            name: The name to register it under.
            path: A PEFT folder, a version's folder in another registry (its card comes along), or a hub id
                such as `"organisation/name"` or `"hf://organisation/name@revision"`.
            base: The base that it was trained on: `"adapterhub-demo"`, a folder or a hub id. Without it,
                modules and shapes are not compared with any base, and the card says so.
            quantization: How that base was stored in training, for example `"nf4"`.
            force: Accept a base other than the one that the adapter's card records; the card then says so.
            download: Takes the place of `huggingface_hub` for hub ids.
            fields: What to write on the card.

        Returns:
            The new version's card.

        Raises:
            AdapterInvalidError: The files are damaged, unsafe or contradict each other. Nothing is stored.
            AdapterIncompatibleError: The adapter cannot be served, or does not fit the base. Nothing is
                stored.
            ConfigError: The name, the base or a field is not valid.
            RegistryError: The adapter cannot be found, or the registry cannot be written.
        """
        check_name(name)
        origin = find_origin(path, download=download)
        with self._staging() as staged:
            draft = take_in(
                origin, staged, name, base=base, quantization=quantization, force=force, fields=fields
            )
            sync_tree(staged)
            with self._lock():
                return self._publish(draft, staged)

    def _publish(self, draft: AdapterCard, staged: Path) -> AdapterCard:
        home, refs = self._layout.home(draft.name), self._layout.refs(draft.name)
        version = max((*self._layout.versions(draft.name), refs.next_version - 1)) + 1
        card = draft.model_copy(update={"version": version})
        write_atomic(staged / CARD_FILE, card.to_json())
        if not home.is_dir():
            home.mkdir()
            sync_folder(self.root)
        staged.rename(self.folder(card))
        sync_folder(home)
        return card

    def resolve(self, ref: str) -> AdapterCard:
        """Finds the version that a reference means, to serve it.

        Args:
            ref: `"name"` (the highest version that is ready), `"name@3"` or `"name@prod"`.

        Raises:
            AdapterNotFoundError: There is none.
            AdapterInvalidError: Its card is damaged.
            RegistryError: That version is disabled.
            ConfigError: It is no reference.
        """
        card = self.get(ref)
        if card.status != "ready":
            raise RegistryError(
                f"Adapter {card.ref!r} is {card.status}.",
                hint=f"Enable it: update({card.ref!r}, status='ready').",
            )
        return card

    def get(self, ref: str) -> AdapterCard:
        """Finds the version that a reference means, whatever its status; otherwise as `resolve`."""
        parsed = Ref.parse(ref)
        refs, versions = self._layout.refs(parsed.name), self._matching(parsed)
        cards = (self._layout.card(parsed.name, version, refs) for version in reversed(versions))
        highest = next(cards)
        if highest.status == "ready":
            return highest
        return next((card for card in cards if card.status == "ready"), highest)

    def list(self) -> Cards:
        """The cards of all adapters, one each: the version that the bare name means.

        Damaged ones are left out with a warning in the log; `verify` tells more.
        """
        return [card for name in self._layout.names() if (card := self._readable(name))]

    def stamp(self) -> tuple[int, ...]:
        """A value that is another one after any `AdapterRegistry`, in any process, has changed something.

        Costs two calls of `stat`. Edits of files by other means are not seen.
        """
        # Every change passes through a folder of its own in the staging folder, whose time it sets.
        return tuple(
            folder.stat().st_mtime_ns if folder.exists() else 0 for folder in (self.root, self.root / STAGING)
        )

    def versions(self, name: str) -> Cards:
        """The cards of all versions of one adapter, oldest first; damaged ones are left out as in `list`.

        Raises:
            AdapterNotFoundError: There is no such adapter.
        """
        versions = self._matching(Ref(check_name(name)))
        return [card for version in versions if (card := self._readable(f"{name}@{version}"))]

    def update(self, ref: str, **changes: Unpack[CardFields]) -> AdapterCard:
        """Changes what a card says of a version; its files never change.

        Args:
            ref: The version.
            changes: Fields to set. A mapping changes single settings of a group:
                `routing={"threshold": 0.6}`.

        Returns:
            The new card.

        Raises:
            AdapterNotFoundError: There is no such version.
            ConfigError: A field cannot be set, or not so.
        """
        return self.revise(ref, lambda card: changes)

    def revise(self, ref: str, change: Callable[[AdapterCard], CardFields]) -> AdapterCard:
        """Changes a card by what it says; no other writer comes in between.

        Args:
            ref: The version.
            change: From the card as it is to the fields to set, as for `update`.

        Returns:
            The new card.

        Raises:
            AdapterNotFoundError: There is no such version.
            ConfigError: A field cannot be set, or not so.
        """
        with self._changing(Ref.parse(ref)) as staged:
            card = self.get(ref)
            card = card.changed(change(card))
            write_atomic(self.folder(card) / CARD_FILE, card.to_json(), staging=staged)
            return card

    def alias(self, name: str, alias: str, version: int | None) -> None:
        """Points an alias at a version, or removes it.

        Args:
            name: The adapter.
            alias: The alias, for example `"prod"`; one that exists is moved.
            version: The version to point at; None removes the alias.

        Raises:
            AdapterNotFoundError: There is no such adapter, version or alias.
            ConfigError: The alias is not valid.
        """
        check_alias(alias)
        needed = Ref(check_name(name), version, alias if version is None else None)
        with self._changing(needed) as staged:
            refs = self._layout.refs(name)
            aliases = {other: target for other, target in refs.aliases.items() if other != alias}
            if version is not None:
                aliases[alias] = version
            self._write_refs(name, refs.model_copy(update={"aliases": aliases}), staged)

    def remove(self, ref: str, *, force: bool = False) -> None:
        """Removes a version, or with a bare name every version. Their numbers are not given again.

        Args:
            ref: `"name"`, `"name@3"` or `"name@prod"`.
            force: Remove also what an alias points to, and the alias with it.

        Raises:
            AdapterNotFoundError: There is nothing of that name.
            AdapterExistsError: An alias points to it.
        """
        parsed = Ref.parse(ref)
        with self._changing(parsed) as staged:
            refs, doomed = self._layout.refs(parsed.name), self._matching(parsed)
            held = [alias for version in doomed for alias in refs.pointing_to(version)]
            if held and not force:
                raise AdapterExistsError(
                    f"The alias {held[0]!r} points to {parsed.name}@{refs.aliases[held[0]]}.",
                    hint="Move or remove the alias first, or remove both with force.",
                )
            self._write_refs(parsed.name, refs.without(doomed), staged)
            # The highest goes last, so that a bare name never falls back to an older version.
            for version in doomed:
                self._layout.folder(parsed.name, version).rename(staged / str(version))
            sync_folder(self._layout.home(parsed.name))

    def verify(self, ref: str | None = None) -> Problems:
        """Checks stored adapters again: the files, their digest, their cards, and the aliases.

        Args:
            ref: One version, or with a bare name all of them; every adapter if not given.

        Returns:
            What is wrong; empty if all is well.

        Raises:
            AdapterNotFoundError: There is no such adapter.
        """
        if ref is None:
            return [found for name in self._layout.names() for found in verify_adapter(self._layout, name)]
        parsed = Ref.parse(ref)
        versions = self._matching(parsed)
        if parsed.is_bare:
            return [*verify_adapter(self._layout, parsed.name)]
        return [*verify_version(self._layout, parsed.name, versions[0])]

    def folder(self, card: AdapterCard) -> Path:
        """The folder with a version's files."""
        return self._layout.folder(card.name, card.version)

    def _matching(self, ref: Ref) -> tuple[int, ...]:
        """The versions that a reference covers, ascending: all for a bare name, else one."""
        versions = self._layout.versions(ref.name)
        target = self._layout.refs(ref.name).aliases.get(ref.alias) if ref.alias else ref.version
        found = versions if ref.is_bare else tuple(number for number in versions if number == target)
        if not found:
            raise self._not_found(ref, versions)
        return found

    def _not_found(self, ref: Ref, versions: tuple[int, ...]) -> AdapterNotFoundError:
        if versions:
            pointers = (*versions[-5:], *sorted(self._layout.refs(ref.name).aliases)[:5])
            known = ", ".join(f"{ref.name}@{pointer}" for pointer in pointers)
            return AdapterNotFoundError(f"There is no adapter {str(ref)!r}.", hint=f"There are: {known}.")
        names = [name for name in self._layout.names() if self._layout.versions(name)]
        close = difflib.get_close_matches(ref.name, names, n=1)
        listed = f"There are: {', '.join(names[:10])}." if names else f"{str(self.root)!r} holds none."
        hint = f"Did you mean {close[0]!r}?" if close else listed
        return AdapterNotFoundError(f"There is no adapter {ref.name!r}.", hint=hint)

    def _readable(self, ref: str) -> AdapterCard | None:
        try:
            return self.get(ref)
        except AdapterNotFoundError:  # no version left, or removed meanwhile
            return None
        except AdapterInvalidError as error:
            _log.warning("%s", error)
            return None

    def _write_refs(self, name: str, refs: Refs, staged: Path) -> None:
        write_atomic(self._layout.home(name) / REFS_FILE, refs.to_json(), staging=staged)

    @contextmanager
    def _changing(self, ref: Ref) -> Iterator[Path]:
        """Holds the lock over something that must exist; yields a staging folder."""
        self._matching(ref)  # nothing is written, not even a lock, for a reference that leads nowhere
        with self._staging() as staged, self._lock():
            self._matching(ref)
            yield staged

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """A folder to prepare things in, or to move them to; removed with what is left in it."""
        folder = self.root / STAGING / uuid.uuid4().hex
        try:
            folder.mkdir(parents=True)
            yield folder
        except OSError as error:
            raise RegistryError(
                f"The registry {str(self.root)!r} could not be changed: {error.strerror} ({error.filename}).",
                hint="Check permissions and free space.",
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            with FileLock(self.root / LOCK, timeout=_LOCK_SECONDS):
                self._sweep()
                yield
        except Timeout as error:
            raise RegistryLockedError(
                f"Another process has held the registry's lock for {_LOCK_SECONDS:.0f} s.",
                hint="Try again; if no process is left that could hold it, report this.",
            ) from error

    def _sweep(self) -> None:
        """Removes what killed processes have left behind."""
        long_ago = time.time() - _STALE_SECONDS
        for folder in (self.root / STAGING).iterdir():
            try:
                if folder.stat().st_mtime < long_ago:
                    shutil.rmtree(folder, ignore_errors=True)
            except FileNotFoundError:  # its owner has just finished
                continue
