"""Results of tools: content for the model, an artifact for the program."""

from __future__ import annotations

from typing import Any

from adapterhub.errors import AdapterHubError

ContentAndArtifact = tuple[str, dict[str, Any]]


def describe_error(error: AdapterHubError) -> ContentAndArtifact:
    """An error as a result."""
    return f"failed: {error}", {"error": error.code, "message": error.message, "hint": error.hint}
