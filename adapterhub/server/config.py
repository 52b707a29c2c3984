"""Settings of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapterhub.errors import ConfigError, describe_validation


class ServerConfig(BaseModel):
    """Settings of the server. Those of the hub, such as the base, are `HubConfig`'s."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str = Field("127.0.0.1", min_length=1)
    """The address to listen on."""
    port: int = Field(8000, ge=0, le=65535)
    """The port to listen on; 0 takes a free one."""
    insecure: bool = False
    """Listen on an address that others reach though there are no keys."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the server, such as `https://chat.example.org`; `*` for all of them."""
    access_log: bool = True
    """Log a line for each request, without texts and keys."""
    drain_seconds: float = Field(60.0, ge=0, le=86400)
    """How long running answers have to end after SIGTERM, seconds."""
    max_body_bytes: int = Field(8 * 2**20, ge=1)
    """The largest body of a request, bytes."""
    body_seconds: float = Field(60.0, gt=0)
    """The time in which each MiB of a body has to come, seconds."""
    max_header_bytes: int = Field(64 * 2**10, ge=1024)
    """The largest headers of a request, bytes."""
    header_seconds: float = Field(30.0, gt=0)
    """The time in which a request's headers have to come, seconds."""
    write_seconds: float = Field(60.0, gt=0)
    """A client that reads nothing for this time is disconnected, seconds."""
    keep_alive_seconds: int = Field(75, ge=1)
    """An idle connection is closed after this time, seconds. Longer than proxies keep theirs: nginx does for 60."""
    max_connections: int = Field(4096, ge=1)
    """Connections at a time; more get 503."""
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
    helper_prompts: Literal["route", "base"] = "route"
    """Title, tag and follow-up prompts of chat front ends to `auto`: route them as others, or answer with the base."""
    base_model: str | None = Field(None, min_length=1, max_length=200)
    """The id of the bare base in `/v1/models`; if not given, its name, or the last part of it if that is a path."""
    first_output_seconds: float = Field(1.0, ge=0, le=60)
    """A stream's status is sent with its first output, or after this time, seconds. Later errors are events."""
    ping_seconds: float = Field(15.0, gt=0, le=3600)
    """A stream without output sends a comment after this time, seconds, so that no proxy cuts it."""
    stream_interval: int = Field(1, ge=1, le=1024)
    """Least number of tokens of a stream's chunk; the first token and the last ones do not wait. A higher one costs
    the server and its clients less processor time, and streams less smoothly."""
    max_shadow_requests: int = Field(2, ge=0, le=1000)
    """How many copies of requests run at a time on shadows; more are dropped. 0 sends none."""
    max_metrics_adapters: int = Field(100, ge=0, le=10_000)
    """How many adapters have series of their own in `/metrics`; the others are counted together, as `other`."""

    @classmethod
    def load(cls, **settings: Any) -> Self:
        """Checks settings.

        Args:
            **settings: Fields of this class.

        Raises:
            ConfigError: A setting is unknown, or its value is not valid.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            raise ConfigError(
                f"The server's settings are not valid: {describe_validation(error)}."
            ) from error
