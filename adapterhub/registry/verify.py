"""Checking stored adapters again: files, digests, cards and aliases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adapterhub.base.fit import check_against_base
from adapterhub.errors import AdapterHubError
from adapterhub.peft_format.checks import check_digest, inspect_adapter
from adapterhub.registry.layout import Layout
from adapterhub.registry.local_base import local_base
from adapterhub.registry.refs import Refs


@dataclass(frozen=True)
class Problem:
    """One fault of a registry.

    Attributes:
        ref: Where: `name`, `name@version`, or the path of a link at the top of the registry.
        message: What is wrong.
    """

    ref: str
    message: str


def verify_registry(layout: Layout) -> Iterator[Problem]:
    """Checks everything in a registry."""
    names = layout.names()
    for path in layout.special_files():
        if path.split("/")[0] not in names:
            yield _special(path, path)
    for name in names:
        yield from verify_adapter(layout, name)


def verify_adapter(layout: Layout, name: str) -> Iterator[Problem]:
    """Checks the aliases and all versions of an adapter."""
    versions = layout.versions(name)
    try:
        refs = layout.refs(name)
    except AdapterHubError as error:
        yield Problem(name, error.message)
        refs = Refs()
    for alias, version in refs.missing(versions):
        yield Problem(name, f"The alias {alias!r} points to version {version}, which does not exist.")
    for path in layout.special_files(name):
        if path.split("/")[1] not in map(str, versions):
            yield _special(name, path)
    for version in versions:
        yield from verify_version(layout, name, version)


def verify_version(layout: Layout, name: str, version: int) -> Iterator[Problem]:
    """Checks the card, the files and the digest of a version, and its base if that is on this machine."""
    ref = f"{name}@{version}"
    try:
        card = layout.card(name, version, Refs())
        info = inspect_adapter(layout.version_folder(name, version))
        check_digest(ref, card.digest, info.digest)
        if base := local_base(card.base):
            check_against_base(info, layout.version_folder(name, version), base)
    except AdapterHubError as error:
        yield Problem(ref, error.message)
        return
    for path in layout.special_files(name, str(version)):
        yield _special(ref, path)


def _special(ref: str, path: str) -> Problem:
    return Problem(ref, f"{path} is a link, pipe or device, which a registry does not follow or read.")
