"""What a store's errors mean for the reader. Their own texts are left out: they may hold keys or signed URLs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adapterhub.errors import AdapterHubError, RegistryError, RegistryUnavailableError


class ConflictError(Exception):
    """Another writer was first: the object exists already, or has changed since it was read."""


@contextmanager
def store_errors(url: object, what: str) -> Iterator[None]:
    """Raises what a store's library raises as a `RegistryError`; `FileNotFoundError` and `ConflictError` stay.

    Args:
        url: The registry's, without secrets.
        what: What was tried, as in "read".

    Raises:
        RegistryUnavailableError: The store did not answer, or not in time; a retry may succeed.
        RegistryError: It refused.
    """
    try:
        yield
    except (AdapterHubError, ConflictError, FileNotFoundError):
        raise
    except Exception as error:  # noqa: BLE001 - each store's library has its own errors
        message = f"{url} could not be {what} ({type(error).__name__})."
        if isinstance(error, PermissionError) or "Credential" in type(error).__name__:
            raise RegistryError(
                message, hint="Check the credentials of this machine and what they allow."
            ) from None
        raise RegistryUnavailableError(
            message, hint="Check the network and the store's address, and try again."
        ) from None
