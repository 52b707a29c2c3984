"""Which addresses a server may listen on without keys."""

from __future__ import annotations

from ipaddress import ip_address

from adapterhub.errors import ConfigError


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(host: str, *, has_keys: bool, insecure: bool) -> None:
    """Returns if a server may listen there.

    Args:
        host: The address.
        has_keys: Whether inference needs a key.
        insecure: Whether the user asked for a server that anybody may use.

    Raises:
        ConfigError: Others than this machine could use it, without a key.
    """
    if not (is_loopback(host) or has_keys or insecure):
        raise ConfigError(
            f"Everybody who reaches {host} could use this server, for it has no API keys.",
            hint="Give it keys with --api-key-file, listen on 127.0.0.1, or allow it with --insecure.",
        )
