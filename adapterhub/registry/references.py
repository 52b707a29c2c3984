"""Names, versions and aliases, and the references that people write: `json`, `json@3`, `json@prod`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapterhub.errors import InvalidRequestError

RESERVED = frozenset({"auto", "base", "__base__", "latest"})
"""Words that mean something else where a name may stand: the router, the bare base, the newest version."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_NAME_RULE = "Use 1 to 63 lower-case letters, digits, '.', '_' or '-', beginning with a letter or digit."


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to an adapter: its name, and at most one of version and alias."""

    name: str
    version: int | None = None
    alias: str | None = None

    @property
    def is_bare(self) -> bool:
        """Whether it is a name alone."""
        return self.version is None and self.alias is None

    def __str__(self) -> str:
        pointer = self.alias if self.version is None else self.version
        return self.name if pointer is None else f"{self.name}@{pointer}"

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Reads `name`, `name@3` or `name@alias`.

        Raises:
            InvalidRequestError: It is none of these.
        """
        name, at, pointer = text.partition("@")
        check_name(name)
        if not at:
            return cls(name)
        if _VERSION.fullmatch(pointer):
            return cls(name, version=int(pointer))
        return cls(name, alias=check_alias(pointer))


def check_name(name: str) -> str:
    """Returns an adapter's name if it is one.

    Raises:
        InvalidRequestError: It is reserved, or has characters that would collide with references, URLs or file
            systems.
    """
    if name in RESERVED:
        raise InvalidRequestError(
            f"{name!r} is reserved and cannot name an adapter.", hint="Choose another name."
        )
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(f"{name[:80]!r} is not an adapter's name.", hint=_NAME_RULE)
    return name


def check_alias(alias: str) -> str:
    """Returns an alias if it is one: spelled like a name, and not a number, which would be a version.

    Raises:
        InvalidRequestError: It is not.
    """
    if alias in RESERVED or alias.isdigit() or not _NAME.fullmatch(alias):
        raise InvalidRequestError(
            f"{alias[:80]!r} is not an alias.", hint=f"{_NAME_RULE} A number alone is a version."
        )
    return alias
