"""Settings of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ServerConfig(BaseModel):
    """Settings of the server. Those of the hub, such as the base, are `HubConfig`'s."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    api_key_file: Path | None = None
    """Keys for inference, one `name key` a line, or YAML or JSON with lists of adapters and limits; beside the one in
    `ADAPTERHUB_API_KEY`. Without any key, everybody who can connect may do everything."""
    admin_key_file: Path | None = None
    """Keys for admins, who may change the registry; beside the one in `ADAPTERHUB_ADMIN_KEY`."""
    audit_log: Path | None = None
    """Where the actions of admins are written, a line of JSON each; if not given, `.audit.jsonl` in the registry."""
    adapter_folders: tuple[Path, ...] = ()
    """Folders of this machine that admins may register adapters from."""
    max_upload_bytes: int = Field(2**30, ge=1)
    """Maximum size of an uploaded adapter, packed and unpacked, bytes."""
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
