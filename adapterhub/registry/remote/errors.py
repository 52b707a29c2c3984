"""What a store's errors mean for the reader. Their own texts are left out: they may hold keys or signed URLs."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from adapterhub.errors import AdapterHubError, RegistryError, RegistryUnavailableError

# In the names of errors that a retry does not help: NoCredentialsError, RepositoryNotFoundError, GatedRepoError.
_LASTING = ("Credential", "NotFound", "Gated")


class ConflictError(Exception):
    """Another writer was first: the object exists already, or has changed since it was read."""


@contextmanager
def store_errors(url: object, what: str) -> Iterator[None]:
    """Raises what a store's library raises as a `RegistryError`; `ConflictError`s stay, and where something is read
    `FileNotFoundError`s.

    Args:
        url: The registry's, without secrets.
        what: What was tried, as in "read".

    Raises:
        RegistryUnavailableError: The store did not answer, or not in time; a retry may succeed.
        RegistryError: It refused.
    """
    try:
        yield
    except FileNotFoundError as error:
        if what != "changed":
            raise
        raise RegistryError(
            f"{url} could not be changed: it does not exist.", hint="Create the bucket."
        ) from error
    except (AdapterHubError, ConflictError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # of this machine's disk
        message = f"{url} could not be {what} ({type(error).__name__})."
        if _is_lasting(error):
            raise RegistryError(
                message, hint="Check that it exists, the credentials of this machine, and what they allow."
            ) from None
        raise RegistryUnavailableError(
            message, hint="Check the network and the store's address, and try again."
        ) from None


def _is_lasting(error: Exception) -> bool:
    """Whether the store has refused, so that a retry does not help."""
    is_forbidden = str(error).startswith("Forbidden: ")  # gcsfs' only sign of a 403
    return (
        isinstance(error, PermissionError) or is_forbidden or any(w in type(error).__name__ for w in _LASTING)
    )
