"""Names, versions and aliases, and the references made of them: `json`, `json@3`, `json@prod`, `json@latest`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapterhub.errors import InvalidRequestError

LATEST = "latest"
"""The alias of every adapter's highest version, whatever its status. It moves by itself and cannot be set."""
RESERVED = frozenset({"auto", "base", "__base__", LATEST})
"""Not names of adapters: the router, the bare base (twice), the highest version."""

# Windows opens devices under these names, whatever follows a dot; a registry may be copied or checked out there.
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul"} | {
    f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)
}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_NAME_RULE = "Use 1 to 63 lower-case letters, digits, '.', '_' or '-', beginning with a letter or digit."


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to an adapter: its name, and a version, an alias or neither."""

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
        """Parses `name`, `name@3`, `name@alias` or `name@latest`.

        Raises:
            InvalidRequestError: The text is none of these.
        """
        name, at, pointer = check_reference(text).partition("@")
        check_name(name)
        if not at:
            return cls(name)
        if _VERSION.fullmatch(pointer):
            return cls(name, version=int(pointer))
        return cls(name, alias=pointer if pointer == LATEST else check_alias(pointer))


def check_reference(reference: object) -> str:
    """Returns a reference if it is a text; what it names is not looked up.

    Raises:
        InvalidRequestError: It is of another type.
    """
    if not isinstance(reference, str):
        raise InvalidRequestError(
            f"An adapter is named by a text, not by a value of type {type(reference).__name__}.",
            hint="Write 'name', 'name@3' or 'name@alias'.",
        )
    return reference


def check_name(name: str) -> str:
    """Returns the name if an adapter may have it.

    Raises:
        InvalidRequestError: It is reserved, here or on Windows, or has characters with a meaning in references, URLs
            or paths.
    """
    if check_reference(name) in RESERVED:
        raise InvalidRequestError(
            f"{name!r} is reserved and cannot name an adapter.", hint="Choose another name."
        )
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(f"{name[:80]!r} is not an adapter's name.", hint=_NAME_RULE)
    if name.partition(".")[0] in _WINDOWS_DEVICES or name.endswith("."):
        raise InvalidRequestError(
            f"{name!r} cannot name an adapter: Windows has no folders of that name.",
            hint="Choose another name.",
        )
    return name


def check_alias(alias: str) -> str:
    """Returns the alias if a caller may set it: written like a name, not reserved, not a number.

    Raises:
        InvalidRequestError: It may not be set.
    """
    if check_reference(alias) == LATEST:
        raise InvalidRequestError(
            f"The alias {LATEST!r} always means the highest version and cannot be set.",
            hint="Choose another alias, such as 'prod'.",
        )
    if alias in RESERVED or alias.isdigit() or not _NAME.fullmatch(alias):
        raise InvalidRequestError(
            f"{alias[:80]!r} is not an alias.", hint=f"{_NAME_RULE} A number alone is a version."
        )
    return alias
