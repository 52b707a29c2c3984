"""What goes wrong with one replica, and is no fault of the request: another replica may answer it."""

from __future__ import annotations

from adapterhub.errors import EngineError


class ReplicaUnavailableError(EngineError):
    """A vLLM server cannot be reached, is full, or went away in the middle of an answer."""

    retryable = True
    code = "overloaded"
    http_status = 503


class AdapterNotLoadedError(ReplicaUnavailableError):
    """A vLLM server does not have the adapter that it was thought to have: it was restarted, or unloaded it."""
