"""What goes wrong with one replica, and is no fault of the request: another replica may answer it."""

from __future__ import annotations

from adapterhub.errors import EngineError


class ReplicaUnavailableError(EngineError):
    """A vLLM server cannot be reached, is full, or went away in the middle of an answer.

    Args:
        message: What happened.
        hint: What to do.
        retry_after: Seconds after which the server wants to be asked again, if it said so.
    """

    retryable = True
    code = "overloaded"
    http_status = 503

    def __init__(self, message: str, *, hint: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class AdapterNotLoadedError(ReplicaUnavailableError):
    """A vLLM server does not have the adapter that it was thought to have: it was restarted, or unloaded it."""
