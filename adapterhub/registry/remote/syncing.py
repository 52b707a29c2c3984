"""Copying a registry to another one: versions that are missing there, under the same numbers, then aliases.

    plan (compares all names; a clash changes nothing) -> versions, one after another -> aliases

Each version is checked against its digest when it is read and stored whole or not at all, so a sync that was
interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from adapterhub.errors import AdapterExistsError, AdapterInvalidError, AdapterNotFoundError
from adapterhub.registry.cards import AdapterCard
from adapterhub.registry.references import check_name
from adapterhub.registry.refs import Alias
from adapterhub.registry.store import AdapterRegistry

Progress = Callable[[int, int, str], object]


@dataclass(frozen=True)
class SyncStep:
    """One change of the destination, or why there is none.

    Attributes:
        action: `copy` a version, set an `alias`, or leave out a version that was `removed` at the destination.
        ref: `name@3` or `name@prod`.
        version: The version that is copied, or that the alias points to.
        digest: That version's digest.
        size_bytes: What is copied, without the small files.
    """

    action: Literal["copy", "alias", "removed"]
    ref: str
    version: int
    digest: str
    size_bytes: int = 0


def sync_registry(
    source: AdapterRegistry,
    destination: AdapterRegistry,
    names: Sequence[str] = (),
    *,
    aliases: bool = True,
    dry_run: bool = False,
    progress: Progress = lambda done, total, ref: None,
) -> list[SyncStep]:
    """Copies what a registry lacks from another one; nothing is removed there.

    Versions are the same if name, number and digest are; the card of one that both have stays as it is.

    Args:
        source: Where to copy from.
        destination: Where to copy to.
        names: The adapters; all of the source if not given.
        aliases: Also set the aliases as they are in the source.
        dry_run: Only find out what would be done.
        progress: Called before each step with what is done, the number of steps, and the step's `ref`.

    Returns:
        The steps, in their order.

    Raises:
        AdapterExistsError: The destination has another version under a number. Nothing is changed.
        AdapterNotFoundError: The source has no adapter of that name, or none at all.
        AdapterInvalidError: Files of the source are not those that were registered.
        RegistryError: One of the two cannot be read or written.
    """
    chosen = [*dict.fromkeys(map(check_name, names))] or source.names()
    if not chosen:  # as where its location is mistyped
        raise AdapterNotFoundError(
            f"{source.location!r} holds no adapters.", hint="Check the path or the URL."
        )
    steps = [step for name in chosen for step in _plan(source, destination, name, aliases)]
    if dry_run:
        return steps
    todo = [step for step in steps if step.action != "removed"]
    for done, step in enumerate(todo):
        progress(done, len(todo), step.ref)
        _do(source, destination, step)
    progress(len(todo), len(todo), "")
    return steps


def _plan(
    source: AdapterRegistry, destination: AdapterRegistry, name: str, aliases: bool
) -> Iterable[SyncStep]:
    cards = source.versions(name)
    present = {card.version: card for card in _versions(destination, name)}
    for card in cards:
        other = present.get(card.version)
        if other is not None and other.digest != card.digest:
            raise AdapterExistsError(
                f"{card.ref} is another adapter in {destination.location} than in {source.location}.",
                hint="Register one of them as another version, or leave this name out.",
            )
        if other is None:
            gone = destination.was_removed(name, card.version)
            yield SyncStep(
                "removed" if gone else "copy", card.ref, card.version, card.digest, card.peft.size_bytes
            )
    if aliases:
        both = {card.version: card for card in cards if not destination.was_removed(name, card.version)}
        yield from _alias_steps(source, destination, name, both)


def _alias_steps(
    source: AdapterRegistry, destination: AdapterRegistry, name: str, cards: dict[int, AdapterCard]
) -> Iterable[SyncStep]:
    """The aliases that differ; those that need a version which the destination does not get are left out."""
    known = _aliases(destination, name)
    for alias, meaning in source.aliases(name).items():
        if known.get(alias) != meaning and meaning.versions <= cards.keys():
            card = cards[meaning.version]
            yield SyncStep("alias", f"{name}@{alias}", card.version, card.digest)


def _aliases(registry: AdapterRegistry, name: str) -> dict[str, Alias]:
    try:
        return registry.aliases(name)
    except AdapterNotFoundError:
        return {}


def _versions(registry: AdapterRegistry, name: str) -> list[AdapterCard]:
    try:
        return registry.versions(name)
    except AdapterNotFoundError:
        return []


def _do(source: AdapterRegistry, destination: AdapterRegistry, step: SyncStep) -> None:
    name, _, pointer = step.ref.partition("@")
    if step.action == "alias":
        meaning = source.aliases(name).get(pointer)
        if meaning is None:  # removed since the plan was made
            return
        destination.alias(name, pointer, meaning)
        return
    card = source.get(step.ref)
    if card.digest != step.digest:
        raise AdapterInvalidError(f"{card.ref} has changed while it was copied.", hint="Run it again.")
    destination.publish(card, source.folder(card), resume=True)
