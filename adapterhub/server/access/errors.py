"""The errors of access, under the names of OpenAI's SDK."""

from __future__ import annotations

from adapterhub.errors import AdapterHubError, CapacityError

BUSY_RETRY_SECONDS = 1
"""What `Retry-After` says where running requests have to end first; when they will is not known."""


class AuthenticationError(AdapterHubError):
    """No key was sent where one is needed, or an unknown one."""

    code = "invalid_api_key"
    http_status = 401


class PermissionDeniedError(AdapterHubError):
    """The key is known and not meant for this path."""

    code = "permission_denied"
    http_status = 403


class KeyLimitError(CapacityError):
    """A key has used up its rate, or runs as many requests as it may.

    Args:
        message: What happened.
        hint: What to do.
        retry_after: Seconds after which a request may be accepted.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after: int = BUSY_RETRY_SECONDS
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after
