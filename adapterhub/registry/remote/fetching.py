"""Downloading a version: its files are bounded, confined, and compared with the manifest and the card's digest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adapterhub._files import sha256_file
from adapterhub.capabilities.features import AdapterFeatures
from adapterhub.errors import AdapterInvalidError, AdapterNotFoundError
from adapterhub.peft_format.checks import check_digest
from adapterhub.peft_format.config import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    WEIGHTS_FILE,
    AdapterConfig,
    adapter_digest,
)
from adapterhub.peft_format.safetensors_header import header_end, parse_header
from adapterhub.registry.cards import CARD_FILE, MAX_CARD_BYTES, AdapterCard
from adapterhub.registry.remote.manifest import (
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    check_file,
    manifest_path,
)
from adapterhub.registry.remote.store import Store
from adapterhub.registry.sources import MAX_FILES, may_be_copied

_START_BYTES = 2**16  # more than the header of most adapters


def fetch_version(store: Store, card: AdapterCard, target: Path) -> None:
    """Downloads the files of a version and checks that they are those that the card is of.

    Args:
        store: Where they are.
        card: The version's card; its digest decides.
        target: An empty folder.

    Raises:
        AdapterInvalidError: Files are missing, damaged, too large, or not those that were registered.
        AdapterNotFoundError: The version has been removed.
        RegistryError: The store does not answer or refuses.
    """
    files = _files(store, card)
    for name, entry in files.items():
        _fetch(store, card, name, entry, target)
    check_digest(
        card.ref, card.digest, adapter_digest(AdapterConfig.read(target).settings, target / WEIGHTS_FILE)
    )


def fetch_small_files(store: Store, card: AdapterCard, target: Path) -> None:
    """As `fetch_version` without the weights, so that only the manifest says whether they are those of the card."""
    for name, entry in _files(store, card).items():
        if name != WEIGHTS_FILE:
            _fetch(store, card, name, entry, target)


def fetch_features(store: Store, card: AdapterCard) -> AdapterFeatures:
    """What a version asks of an engine, by its config and the header of its weights; raises as `fetch_version`."""
    folder, weights = f"{card.name}/{card.version}", Path(WEIGHTS_FILE)
    try:
        config, _ = store.read(f"{folder}/{CONFIG_FILE}", MAX_CONFIG_BYTES)
        start = store.read_start(f"{folder}/{WEIGHTS_FILE}", _START_BYTES)
        if (end := header_end(weights, start)) > len(start):
            start = store.read_start(f"{folder}/{WEIGHTS_FILE}", end)
    except FileNotFoundError as error:
        _check_has_card(store, card)
        raise AdapterInvalidError(f"{card.ref} lacks a file.", hint=_hint(card)) from error
    return AdapterFeatures.of_files(config, parse_header(weights, start, card.peft.size_bytes))


def _files(store: Store, card: AdapterCard) -> Mapping[str, FileEntry | int]:
    """The files of a version: name -> what the manifest says of it, or its size."""
    files = _manifest(store, card) or _listed(store, card)
    if not {CONFIG_FILE, WEIGHTS_FILE} <= files.keys():
        raise AdapterInvalidError(f"{card.ref} has no {CONFIG_FILE} or no {WEIGHTS_FILE}.", hint=_hint(card))
    return files


def _fetch(store: Store, card: AdapterCard, name: str, entry: FileEntry | int, target: Path) -> None:
    size = entry.size if isinstance(entry, FileEntry) else entry
    check_file(name, size)
    _download(store, card, name, target / name, size)
    if isinstance(entry, FileEntry) and sha256_file(target / name) != entry.sha256:
        raise AdapterInvalidError(
            f"{card.ref}: {name} is not the file that was registered.", hint=_hint(card)
        )


def _manifest(store: Store, card: AdapterCard) -> Mapping[str, FileEntry] | None:
    try:
        content, _ = store.read(manifest_path(card.name, card.version), MAX_MANIFEST_BYTES)
    except FileNotFoundError:  # the registry was copied there by other means, or is a repository of the Hub
        return None
    return Manifest.from_json(content).files


def _listed(store: Store, card: AdapterCard) -> Mapping[str, int]:
    """The files below the version's folder, and their sizes; others than an adapter's are left out."""
    prefix = f"{card.name}/{card.version}/"
    names = {
        path.removeprefix(prefix): found.size for path, found in store.objects(prefix.rstrip("/")).items()
    }
    files = {name: size for name, size in names.items() if "/" not in name and may_be_copied(name)}
    if CARD_FILE not in names and not files:
        raise _gone(card)
    if len(files) > MAX_FILES:
        raise AdapterInvalidError(f"{card.ref} has {len(files)} files; an adapter has at most {MAX_FILES}.")
    return files


def _download(store: Store, card: AdapterCard, name: str, target: Path, size: int) -> None:
    try:
        store.download(f"{card.name}/{card.version}/{name}", target, size)
    except FileNotFoundError as error:
        _check_has_card(store, card)  # a removed version still has its manifest
        raise AdapterInvalidError(f"{card.ref} lacks its file {name}.", hint=_hint(card)) from error
    if target.stat().st_size != size:
        raise AdapterInvalidError(
            f"{card.ref}: {name} has {target.stat().st_size:,} bytes and not {size:,}.", hint=_hint(card)
        )


def _check_has_card(store: Store, card: AdapterCard) -> None:
    try:
        store.read(f"{card.name}/{card.version}/{CARD_FILE}", MAX_CARD_BYTES)
    except FileNotFoundError as error:
        raise _gone(card) from error


def _gone(card: AdapterCard) -> AdapterNotFoundError:
    return AdapterNotFoundError(f"The files of {card.ref} are gone.", hint="It has been removed meanwhile.")


def _hint(card: AdapterCard) -> str:
    return f"Remove {card.ref} and register it again, or restore the file."
