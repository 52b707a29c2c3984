"""Checking what is stored, long after it was registered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adapterhub.errors import AdapterHubError
from adapterhub.peft_format.checks import inspect_adapter
from adapterhub.registry.layout import Layout, Refs


@dataclass(frozen=True)
class Problem:
    """Something that is not in order.

    Attributes:
        ref: What it concerns: `name` or `name@version`.
        message: What is wrong.
    """

    ref: str
    message: str


def verify_adapter(layout: Layout, name: str) -> Iterator[Problem]:
    """Checks the aliases and all versions of an adapter."""
    versions = layout.versions(name)
    try:
        refs = layout.refs(name)
    except AdapterHubError as error:
        yield Problem(name, error.message)
        refs = Refs()
    for alias, version in refs.aliases.items():
        if version not in versions:
            yield Problem(name, f"The alias {alias!r} points to version {version}, which does not exist.")
    for version in versions:
        yield from verify_version(layout, name, version)


def verify_version(layout: Layout, name: str, version: int) -> Iterator[Problem]:
    """Checks the card and the files of a version, and that they are those that were registered."""
    ref = f"{name}@{version}"
    try:
        card = layout.card(name, version, Refs())
        found = inspect_adapter(layout.folder(name, version))
    except AdapterHubError as error:
        yield Problem(ref, error.message)
        return
    if found.digest != card.digest:
        yield Problem(ref, "The files are not those that were registered: their digest is another.")
