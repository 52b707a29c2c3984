"""The registry: a folder of named, versioned, checked adapters (`layout.py` draws it).

Writers prepare everything in `.staging` and rename it into the registry under a file lock. So readers need no lock and
see a version whole or not at all. A process that is killed leaves at most a folder in `.staging`, which the next writer
removes. The number of a version is never reused.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias, Unpack

from adapterhub._files import is_folder, sync_tree, user_path, write_new
from adapterhub.capabilities.features import AdapterFeatures
from adapterhub.config import is_url
from adapterhub.errors import (
    AdapterDisabledError,
    AdapterExistsError,
    AdapterInvalidError,
    AdapterNotFoundError,
    ConfigError,
    RegistryError,
)
from adapterhub.peft_format.checks import check_digest, inspect_adapter
from adapterhub.registry.cards import CARD_FILE, AdapterCard, CardFields
from adapterhub.registry.importing import import_adapter
from adapterhub.registry.layout import REFS_FILE, STAGING, Catalog, Layout
from adapterhub.registry.references import LATEST, Ref, check_alias, check_name
from adapterhub.registry.refs import Alias, Refs
from adapterhub.registry.sources import AdapterFiles, Downloader, copy_adapter, locate_adapter
from adapterhub.registry.staging import staging_folder, writers_lock
from adapterhub.registry.verify import Problem, verify_adapter, verify_registry, verify_version

_log = logging.getLogger(__name__)

# Inside the class, `list` is the method.
Cards: TypeAlias = list[AdapterCard]
Problems: TypeAlias = list[Problem]
Names: TypeAlias = list[str]


class AdapterRegistry:
    """Named, versioned, checked adapters in a folder, shared by any number of concurrent threads and processes."""

    def __init__(self, root: str | Path, *, lock_timeout: float = 60.0) -> None:
        """Opens a registry.

        Args:
            root: Its folder; it is created when the first adapter is registered.
            lock_timeout: Seconds that a change waits for another writer's lock before `RegistryLockedError`.

        Raises:
            ConfigError: `root` is not a path.
        """
        if is_url(root):
            raise ConfigError(
                "A URL is no folder.", hint="Open it with adapterhub.registry.remote.open_registry(url)."
            )
        self.root = user_path(root, ConfigError)
        self._layout = Layout(self.root)
        self._lock_timeout = lock_timeout

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"

    @property
    def location(self) -> str:
        """Where the registry is, for people: its folder, or its URL."""
        return str(self.root)

    @property
    def _catalog(self) -> Catalog:
        return self._layout

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
        """Checks an adapter and stores a copy of it as the next version of a name.

        Args:
            name: The name to register it under.
            path: A PEFT folder, a version's folder in another registry, or a hub id such as `"organisation/name"` or
                `"hf://organisation/name@revision"`.
            base: The base that it was trained on: `"adapterhub-demo"`, a folder, a GGUF file or a hub id. Without it,
                modules and shapes are not compared with any base, and the card has a warning.
            quantization: How that base was stored in training, for example `"nf4"`.
            force: Accept a base other than the recorded one, with a warning on the card.
            trust_card: Take every field of a `card.json` next to the files, also prompt, routing, serving, source and
                lineage. Without it only the fields that describe the adapter are taken, and warnings on the new card
                show the others. A version of this registry is always trusted.
            dry_run: Check everything, also the room for the files and the lock, and store nothing.
            download: Replaces `huggingface_hub.snapshot_download` for hub ids.
            fields: Fields of the card to set.

        Returns:
            The new version's card; that of a dry run has the version 1.

        Raises:
            AdapterInvalidError: The files are damaged, unsafe or contradict each other. Nothing is stored.
            AdapterIncompatibleError: The adapter cannot be served, or does not fit the base. Nothing is
                stored.
            InvalidRequestError: The name, the path or a field is not valid.
            ConfigError: The base cannot be found or read.
            RegistryError: The adapter cannot be downloaded, or the registry cannot be written.
            RegistryLockedError: Another process holds the lock; a retry may succeed.
        """
        check_name(name)
        files = locate_adapter(path, download=download)
        with staging_folder(self._layout) as staging:
            draft = import_adapter(
                files,
                staging,
                name,
                base=base,
                quantization=quantization,
                force=force,
                trust_card=trust_card or self._holds(files.folder),
                fields=fields,
            )
            sync_tree(staging)
            with writers_lock(self._layout, self._lock_timeout):
                if dry_run:
                    write_new(staging / CARD_FILE, draft.to_json())
                    return draft
                return self._publish(draft, staging)

    def publish(self, card: AdapterCard, folder: Path, *, resume: bool = False) -> None:
        """Stores a version of another registry under its own number.

        Args:
            card: Its card.
            folder: Its files.
            resume: Of a registry in a store: go on with an unfinished upload of the same files.

        Raises:
            AdapterExistsError: There is, or was, another version of that number.
            AdapterInvalidError: The files are not those that the card is of.
        """
        with staging_folder(self._layout) as staging:
            copy_adapter(AdapterFiles(folder, folder), staging)
            check_digest(card.ref, card.digest, inspect_adapter(staging).digest)
            write_new(staging / CARD_FILE, card.to_json())
            sync_tree(staging)
            with writers_lock(self._layout, self._lock_timeout):
                is_present = card.version in self._layout.versions(card.name)
                if is_present or self.was_removed(card.name, card.version):
                    raise self._taken(card)
                self._move_version(staging, card)

    def _taken(self, card: AdapterCard) -> AdapterExistsError:
        return AdapterExistsError(
            f"The number of {card.ref} is taken.", hint="Register it as the next version."
        )

    def _holds(self, folder: Path) -> bool:
        """Whether it is the folder of a version of this registry."""
        path = folder.resolve()
        name = path.parent.name
        return (
            path.parent.parent == self.root.resolve()
            and name in self._layout.names()
            and path.name in map(str, self._layout.versions(name))
        )

    def _publish(self, draft: AdapterCard, staging: Path) -> AdapterCard:
        name, refs = draft.name, self._layout.refs(draft.name)
        version = max(self._layout.highest_number(name), refs.next_version - 1) + 1
        card = draft.model_copy(update={"version": version})
        write_new(staging / CARD_FILE, card.to_json())
        self._move_version(staging, card)
        return card

    def _move_version(self, staging: Path, card: AdapterCard) -> None:
        with self._layout.open() as root, suppress(FileExistsError):
            os.mkdir(card.name, dir_fd=root)
            os.fsync(root)
        self._move(staging, card.name, str(card.version))

    def _move(self, staged: Path, *names: str) -> None:
        """Renames a staged file or folder to its place in the registry, following no link."""
        with self._layout.open(*names[:-1]) as folder:
            os.replace(staged, names[-1], dst_dir_fd=folder)
            os.fsync(folder)

    def resolve(self, ref: str) -> AdapterCard:
        """Returns the card of the version to serve for a reference.

        Args:
            ref: `"name"` (the highest version that is ready), `"name@3"`, `"name@prod"` or `"name@latest"` (the
                highest version, ready or not).

        Raises:
            AdapterNotFoundError: There is no such adapter, version or alias.
            AdapterInvalidError: The version's card is damaged.
            AdapterDisabledError: The version is disabled.
            InvalidRequestError: The text is not a reference.
        """
        card = self.get(ref)
        if card.status != "ready":
            raise AdapterDisabledError(
                f"Adapter {card.ref!r} is disabled.",
                hint=f"Enable it: registry.update({card.ref!r}, status='ready').",
            )
        return card

    def get(self, ref: str) -> AdapterCard:
        """Returns the card of the version that a reference points to, whatever its status; otherwise as `resolve`."""
        # One catalog throughout: that of a store may be replaced by a newer one at any time.
        parsed, catalog = Ref.parse(ref), self._catalog
        refs, versions = catalog.refs(parsed.name), self._matching(parsed, catalog)
        cards = (catalog.card(parsed.name, version, refs) for version in reversed(versions))
        highest = next(cards)
        if highest.status == "ready":
            return highest
        return next((card for card in cards if card.status == "ready"), highest)

    def list(self) -> Cards:
        """The cards of all adapters, one each: the version that the bare name points to.

        Damaged ones are left out with a warning in the log; `verify` reports the details.
        """
        return [card for name in self._catalog.names() if (card := self._readable(name))]

    def stamp(self) -> tuple[int, ...]:
        """A value that changes with every change made through an `AdapterRegistry`, in any process.

        Costs two calls of `stat`. Edits of files by other means do not change it.
        """
        # Every change creates a folder in the staging folder, which updates the staging folder's mtime.
        return tuple(map(_modified_at, (self.root, self.root / STAGING)))

    def versions(self, name: str) -> Cards:
        """The cards of all versions of one adapter, oldest first; damaged ones are left out as in `list`.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            InvalidRequestError: The name is not valid.
        """
        versions = self._matching(Ref(check_name(name)))
        return [card for version in versions if (card := self._readable(f"{name}@{version}"))]

    def names(self) -> Names:
        """The names of all adapters that have a version, sorted."""
        return [name for name in self._catalog.names() if self._catalog.versions(name)]

    def was_removed(self, name: str, version: int) -> bool:
        """Whether there is no such version any more, though its number was given."""
        is_given = version < self._catalog.refs(name).next_version
        return is_given and version not in self._catalog.versions(name)

    def update(self, ref: str, **changes: Unpack[CardFields]) -> AdapterCard:
        """Sets fields on the card of a version; its files never change.

        Args:
            ref: The version.
            changes: Fields to set. A mapping sets single settings of a group:
                `routing={"threshold": 0.6}`.

        Returns:
            The new card.

        Raises:
            AdapterNotFoundError: There is no such version.
            InvalidRequestError: A field cannot be set, or not to this value.
        """
        return self.revise(ref, lambda card: changes)

    def revise(self, ref: str, change: Callable[[AdapterCard], CardFields]) -> AdapterCard:
        """Sets fields that are computed from the card, under the lock: read, modify and write as one step.

        Args:
            ref: The version.
            change: Called with the current card; returns the fields to set, as for `update`.

        Returns:
            The new card.

        Raises:
            AdapterNotFoundError: There is no such version.
            InvalidRequestError: A field cannot be set, or not to this value.
        """
        with self._changing(Ref.parse(ref)) as staging:
            card = self.get(ref)
            card = card.changed(change(card))
            write_new(staging / CARD_FILE, card.to_json())
            self._move(staging / CARD_FILE, card.name, str(card.version), CARD_FILE)
            return card

    def aliases(self, name: str) -> dict[str, Alias]:
        """The aliases of an adapter: alias -> the versions that answer its requests, and its shadow.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            AdapterInvalidError: `refs.json` is damaged.
            InvalidRequestError: The name is not valid.
        """
        self._matching(Ref(check_name(name)))
        return dict(sorted(self._catalog.refs(name).aliases.items()))

    def alias(self, name: str, alias: str, version: int | Mapping[int, int] | Alias | None) -> None:
        """Sets, moves, splits or removes an alias, as one step.

        A split is for a canary: `alias("sql", "prod", {3: 90, 4: 10})` sends a tenth of the requests for `sql@prod` to
        version 4. Which version answers is chosen for each request; see `GenerationOptions`. `resolve` always gives the
        version with the largest weight, of equal ones the oldest.

        Args:
            name: The adapter.
            alias: The alias, for example `"prod"`; an existing one is moved, and keeps its shadow unless that is now
                among its versions.
            version: The version that it points to, or up to 16 versions with whole weights. An `Alias` sets versions
                and shadow at once; its `shadow=None` removes the shadow. None removes the alias.

        Raises:
            AdapterNotFoundError: There is no such adapter, version or alias.
            InvalidRequestError: The name, the alias or a weight is not valid, or the shadow answers requests itself.
        """
        check_alias(alias)
        targets = [version] if isinstance(version, int) else _versions_of(version)
        required = [Ref(check_name(name), target) for target in targets] or [
            Ref(check_name(name), alias=alias)
        ]

        def edit(refs: Refs) -> Refs:
            if version is None or isinstance(version, Alias):
                return refs.with_alias(alias, version and version.checked())
            before = refs.aliases.get(alias)
            return refs.with_alias(alias, Alias.of(version, before.shadow if before else None))

        self._edit_refs(name, required, edit)

    def shadow(self, name: str, alias: str, version: int | None, percent: float = 5.0) -> None:
        """Sets the shadow of an alias: the version that a server sends copies of its requests to, or removes it.

        Args:
            name: The adapter.
            alias: The alias.
            version: The version that gets copies, and whose answers nobody sees; None removes the shadow.
            percent: Share of the requests that are copied, above 0 and up to 100.

        Raises:
            AdapterNotFoundError: There is no such adapter, version or alias.
            InvalidRequestError: The version answers requests for the alias itself, or `percent` is out of range.
        """
        required = [Ref(check_name(name), alias=check_alias(alias))]
        if version is not None:
            required.append(Ref(name, version))

        def edit(refs: Refs) -> Refs:
            return refs.with_alias(alias, refs.aliases[alias].shadowed(version, percent))

        self._edit_refs(name, required, edit)

    def remove(self, ref: str, *, force: bool = False) -> None:
        """Removes a version, or with a bare name every version. Their numbers are not reused.

        Args:
            ref: `"name"`, `"name@3"`, `"name@prod"` or `"name@latest"`.
            force: Also remove versions that an alias needs: an alias of this version goes with it, a split goes on with
                its other versions.

        Raises:
            AdapterNotFoundError: There is no such adapter, version or alias.
            AdapterExistsError: An alias points to a version, gives it a share of its requests or has it as its shadow,
                and `force` is off.
        """
        parsed = Ref.parse(ref)
        with self._changing(parsed) as staging:
            refs, versions = self._layout.refs(parsed.name), self._matching(parsed)
            if not force:
                refs.check_unneeded(parsed.name, versions)
            self._write_refs(parsed.name, refs.without(versions), staging)
            # The highest goes last, so that a reader of the bare name never gets an older version meanwhile.
            with self._layout.open(parsed.name) as folder:
                for version in versions:
                    os.rename(str(version), staging / str(version), src_dir_fd=folder)
                os.fsync(folder)

    def verify(self, ref: str | None = None) -> Problems:
        """Checks stored adapters again: the files, their digest, their cards, and the aliases.

        Args:
            ref: One version, or all versions of a bare name; all adapters if not given.

        Returns:
            The problems; empty if there are none.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            RegistryError: There is no registry, or it cannot be read.
        """
        if ref is None:
            if not is_folder(self.root, RegistryError):
                raise RegistryError(
                    f"There is no registry at {str(self.root)!r}.",
                    hint="Check the path; the first adapter that is registered creates it.",
                )
            return [*verify_registry(self._layout)]
        parsed = Ref.parse(ref)
        versions = self._matching(parsed)
        if parsed.is_bare:
            return [*verify_adapter(self._layout, parsed.name)]
        return [*verify_version(self._layout, parsed.name, versions[0])]

    def folder(self, card: AdapterCard) -> Path:
        """The folder with a version's files."""
        return self.expected_folder(card)

    def small_files(self, card: AdapterCard) -> Path:
        """A folder with a version's files, of which the weights may be left out: for its config and tokenizer files."""
        return self.folder(card)

    def features(self, card: AdapterCard) -> AdapterFeatures:
        """What a version asks of the engine that runs it; its weights are not read for that.

        Raises:
            AdapterInvalidError: Its files are damaged.
        """
        return AdapterFeatures.of_folder(self.folder(card))

    def expected_folder(self, card: AdapterCard) -> Path:
        """Where `folder` finds a version's files, or puts them if it has to download them first."""
        return self._layout.version_folder(card.name, card.version)

    def _matching(self, ref: Ref, catalog: Catalog | None = None) -> tuple[int, ...]:
        """The versions that a reference matches, ascending: all for a bare name, else one."""
        catalog = catalog or self._catalog
        versions = catalog.versions(ref.name)
        if ref.is_bare:
            matching = versions
        elif ref.alias == LATEST:
            matching = versions[-1:]
        else:
            target = catalog.refs(ref.name).aliases.get(ref.alias) if ref.alias else None
            wanted = target.version if target else ref.version
            matching = tuple(version for version in versions if version == wanted)
        if not matching:
            raise self._not_found(ref, versions)
        return matching

    def _not_found(self, ref: Ref, versions: tuple[int, ...]) -> AdapterNotFoundError:
        if versions:
            pointers = (*versions[-5:], *sorted(self._catalog.refs(ref.name).aliases)[:5])
            known = ", ".join(f"{ref.name}@{pointer}" for pointer in pointers)
            return AdapterNotFoundError(f"There is no adapter {str(ref)!r}.", hint=f"There are: {known}.")
        names = self.names()
        close = difflib.get_close_matches(ref.name, names, n=1)
        listed = f"There are: {', '.join(names[:10])}." if names else f"{self.location!r} holds none."
        hint = f"Did you mean {close[0]!r}?" if close else listed
        return AdapterNotFoundError(f"There is no adapter {ref.name!r}.", hint=hint)

    def _readable(self, ref: str) -> AdapterCard | None:
        try:
            return self.get(ref)
        except AdapterNotFoundError:  # every version was removed
            return None
        except AdapterInvalidError as error:
            _log.warning("%s", error)
            return None

    def _edit_refs(self, name: str, required: Sequence[Ref], edit: Callable[[Refs], Refs]) -> None:
        """Replaces the aliases of an adapter by what `edit` makes of them, as one step; what is required must exist."""
        with self._changing(*required) as staging:
            self._write_refs(name, edit(self._layout.refs(name)), staging)

    def _write_refs(self, name: str, refs: Refs, staging: Path) -> None:
        write_new(staging / REFS_FILE, refs.to_json())
        self._move(staging / REFS_FILE, name, REFS_FILE)

    @contextmanager
    def _changing(self, *refs: Ref) -> Iterator[Path]:
        """Holds the lock for a change of what must exist; yields a staging folder."""
        for ref in refs:
            self._matching(ref)  # a reference to nothing must not create the folder or the lock file
        with staging_folder(self._layout) as staging, writers_lock(self._layout, self._lock_timeout):
            for ref in refs:
                self._matching(ref)  # another writer may have removed it before the lock was acquired
            yield staging


def _versions_of(meaning: Mapping[int, int] | Alias | None) -> list[int]:
    """The versions that an alias is to need."""
    return sorted(meaning.versions) if isinstance(meaning, Alias) else [*(meaning or ())]


def _modified_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
