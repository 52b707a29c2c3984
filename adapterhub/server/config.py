"""Settings of the server."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ServerConfig(BaseModel):
    """Settings of the server. Those of the hub, such as the base, are `HubConfig`'s."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    unknown_fields: Literal["refuse", "ignore"] = "refuse"
    """Fields of a body that no API defines: refuse them, or ignore them and name them in `x-adapterhub-ignored`."""
    base_model: str | None = Field(None, min_length=1, max_length=200)
    """The id of the bare base in `/v1/models`; if not given, its name, or the last part of it if that is a path."""
    first_output_seconds: float = Field(1.0, ge=0, le=60)
    """A stream's status is sent with its first output, or after this time, seconds. Later errors are events."""
    ping_seconds: float = Field(15.0, gt=0, le=3600)
    """A stream without output sends a comment after this time, seconds, so that no proxy cuts it."""
    max_metrics_adapters: int = Field(100, ge=0, le=10_000)
    """How many adapters have series of their own in `/metrics`; the others are counted together, as `other`."""
