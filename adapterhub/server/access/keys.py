"""API keys, read from files or the environment and kept as digests.

A key file has one key a line, `name key`, or is YAML or JSON with a list of `KeyEntry`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from adapterhub._files import open_regular, os_errors_as
from adapterhub.errors import ConfigError, InvalidRequestError, describe_validation
from adapterhub.registry.references import check_name

API_KEY_VARIABLE = "ADAPTERHUB_API_KEY"
ADMIN_KEY_VARIABLE = "ADAPTERHUB_ADMIN_KEY"
MIN_KEY_LENGTH = 16
"""Keys are kept as plain sha256, which is safe for keys that cannot be guessed."""
MAX_KEY_LENGTH = 512
_MAX_FILE_BYTES = 2**20
_MAKE_KEY = "`openssl rand -hex 32` makes one."


class KeyEntry(BaseModel):
    """One key in a YAML or JSON file; a line of a text file has only the first two fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$")
    """Who has the key; logs and the audit log name it."""
    key: SecretStr = Field(min_length=MIN_KEY_LENGTH, max_length=MAX_KEY_LENGTH)
    """The key itself: visible ASCII characters."""
    adapters: tuple[str, ...] | None = None
    """The adapters that it may use; the others do not exist for it. Without it, all. The base is always allowed."""
    requests_per_minute: int | None = Field(None, ge=1, le=1_000_000)
    """How many requests may be sent in a minute; without it, any number."""
    max_concurrent_requests: int | None = Field(None, ge=1, le=1_000_000)
    """How many requests may run at once; without it, any number."""


@dataclass(frozen=True)
class ApiKey:
    """A key without its text.

    Attributes:
        name: Who has it.
        digest: sha256 of its text.
        is_admin: Whether it is a key for admins, who may do everything.
        adapters: The names of the adapters that it may use; None for all.
        requests_per_minute: How many requests may be sent in a minute; None for any number.
        max_concurrent_requests: How many requests may run at once; None for any number.
    """

    name: str
    digest: bytes
    is_admin: bool = False
    adapters: frozenset[str] | None = None
    requests_per_minute: int | None = None
    max_concurrent_requests: int | None = None

    @classmethod
    def of(cls, entry: KeyEntry, *, is_admin: bool) -> ApiKey:
        """The key of an entry.

        Raises:
            ConfigError: The key has spaces or other characters that a header cannot hold, an adapter's name is not
                valid, or an admin's key is restricted.
        """
        text = entry.key.get_secret_value()
        if not all("!" <= character <= "~" for character in text):
            raise ConfigError(
                f"The key of {entry.name!r} has characters other than visible ASCII.", hint=_MAKE_KEY
            )
        if is_admin and entry.adapters is not None:
            raise ConfigError(
                f"The admin key {entry.name!r} has a list of adapters.",
                hint="Admin keys may use all of them.",
            )
        try:
            adapters = frozenset(map(check_name, entry.adapters)) if entry.adapters is not None else None
        except InvalidRequestError as error:
            raise ConfigError(
                f"The adapters of key {entry.name!r}: {error.message}", hint=error.hint
            ) from error
        return cls(
            entry.name,
            hashlib.sha256(text.encode()).digest(),
            is_admin,
            adapters,
            entry.requests_per_minute,
            entry.max_concurrent_requests,
        )


def find_key(keys: Iterable[ApiKey], token: str) -> ApiKey | None:
    """The key with this text, compared with every key in constant time.

    Args:
        keys: All keys.
        token: What the client sent.
    """
    digest, found = hashlib.sha256(token.encode(errors="surrogateescape")).digest(), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def keys_of_environment(environment: Mapping[str, str] = os.environ) -> tuple[ApiKey, ...]:
    """The keys in `ADAPTERHUB_API_KEY` and `ADAPTERHUB_ADMIN_KEY`, at most one of each kind.

    Raises:
        ConfigError: A key is too short, too long, or has characters that a header cannot hold.
    """
    variables = ((API_KEY_VARIABLE, False), (ADMIN_KEY_VARIABLE, True))
    return tuple(
        _parse({"name": variable, "key": environment[variable]}, is_admin, variable)
        for variable, is_admin in variables
        if environment.get(variable)
    )


def read_key_file(path: Path, *, is_admin: bool) -> tuple[ApiKey, ...]:
    """Reads a key file.

    Args:
        path: Ends in `.yaml`, `.yml` or `.json` for a list of `KeyEntry`; else one `name key` a line, and comments
            after `#` at the beginning of a line.
        is_admin: Whether its keys are for admins.

    Raises:
        ConfigError: It cannot be read, others than its owner and group may read it or others than its owner write it,
            it holds no key, or one that is not valid. The message has no key.
    """
    text = _read_private(path)
    structured = path.suffix.lower() in (".yaml", ".yml", ".json")
    entries = _structured_entries(text, path.name) if structured else _line_entries(text, path.name)
    keys = tuple(_parse(entry, is_admin, path.name) for entry in entries)
    if not keys:
        raise ConfigError(
            f"The key file {path.name} holds no key.", hint=f"Write lines of `name key`. {_MAKE_KEY}"
        )
    for attribute in ("name", "digest"):
        if len({getattr(key, attribute) for key in keys}) < len(keys):
            what = "name" if attribute == "name" else "key"
            raise ConfigError(
                f"The key file {path.name} has the same {what} twice.", hint="Give each its own."
            )
    return keys


def _read_private(path: Path) -> str:
    failure = f"The key file {path.name} cannot be read"
    # Followed, since a secret that is mounted into a container is a link.
    with os_errors_as(ConfigError, failure), open_regular(path, follow_links=True) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise ConfigError(
                f"The key file {path.name} has the permissions {mode:03o}: others could read or change it.",
                hint="`chmod 600` it; 640 is accepted too.",
            )
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError(f"{failure}: it has more than {_MAX_FILE_BYTES:,} bytes.")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{failure}: it is not UTF-8.") from None


def _line_entries(text: str, file: str) -> list[dict[str, Any]]:
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise ConfigError(f"Line {number} of the key file {file} is not `name key`.")
        entries.append({"name": words[0], "key": words[1]})
    return entries


def _structured_entries(text: str, file: str) -> list[Any]:
    from adapterhub._yaml import parse_yaml  # JSON is YAML too

    try:
        content = parse_yaml(text, aliases=False)
    except ValueError as error:
        raise ConfigError(f"The key file {file} is not YAML or JSON: {error}.") from None
    if not isinstance(content, list):
        raise ConfigError(f"The key file {file} must be a list of keys with `name` and `key`.")
    return content


def _parse(entry: Any, is_admin: bool, where: str) -> ApiKey:
    try:
        return ApiKey.of(KeyEntry.model_validate(entry), is_admin=is_admin)
    except ValidationError as error:
        raise ConfigError(
            f"A key in {where} is not valid: {describe_validation(error)}.",
            hint=f"A key has {MIN_KEY_LENGTH} to {MAX_KEY_LENGTH} characters. {_MAKE_KEY}",
        ) from None
