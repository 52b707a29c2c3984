"""The arguments of the application: its own, the hub's and the server's, as one flat list."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapterhub.config import HubConfig, is_url, registry_location
from adapterhub.errors import ConfigError
from adapterhub.server.config import ServerConfig
from adapterhub.vllm.connecting import split_urls

_OF_THE_PROXY = frozenset(
    {"host", "port", "header_seconds", "max_header_bytes", "keep_alive_seconds", "write_seconds"}
)
"""Settings of the server that Ray's HTTP proxy has in its place."""
_PATHS = ("api_key_file", "admin_key_file", "audit_log")
ECHO = "echo"


class ApplicationConfig(BaseModel):
    """The arguments of the application; besides these, the fields of `HubConfig` and `ServerConfig`.

    Values may be texts, as on a command line.
    """

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    engine: str | None = None
    """What computes in each replica: `transformers` or `llama.cpp` in its process, vLLM servers as URLs separated by
    commas, or `echo`, which repeats prompts and needs no base. Without it, what `HubConfig` finds."""
    replicas: int = Field(1, ge=1)
    """How many hubs; with `max_replicas`, at least."""
    max_replicas: int | None = Field(None, ge=1)
    """Ray adds replicas up to this number under load, and removes them again."""
    fronts: int = Field(1, ge=1)
    """How many processes take requests from Ray's proxies and choose a replica."""
    num_cpus: float = Field(1, ge=0)
    """Processor cores of a replica, which is also how many threads torch uses in it."""
    num_gpus: float = Field(0, ge=0)
    """GPUs of a replica."""

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas is less than replicas")
        return self

    @property
    def urls(self) -> list[str]:
        """The vLLM servers, if they are the engine."""
        engine = self.engine or self.hub.engine
        return split_urls(engine) if "://" in engine else []

    @property
    def hub(self) -> HubConfig:
        """The settings of each hub.

        Raises:
            ConfigError: One is not valid.
        """
        settings = self._further(HubConfig)
        return HubConfig.load(**settings, engine=None if self.engine == ECHO else self.engine)

    @property
    def server(self) -> ServerConfig:
        """The settings of the server in each replica.

        Raises:
            ConfigError: One is not valid.
        """
        return ServerConfig.load(**self._further(ServerConfig))

    def resolved(self) -> Self:
        """The same with everything checked, and with what replicas would find otherwise: the environment, paths.

        Raises:
            ConfigError: A setting is unknown, not valid, or one of Ray's proxy.
        """
        self._check_names()
        hub = self.hub.model_dump(exclude_unset=True, exclude={"engine"})
        server = self.server.model_dump(exclude_unset=True)
        paths = {name: server[name] for name in _PATHS if server.get(name)}
        if hub.get("base") and Path(hub["base"]).exists():
            paths["base"] = hub["base"]
        registry = registry_location(self.hub.registry)
        paths |= {} if is_url(registry) else {"registry": registry}
        absolute = {name: _absolute(path) for name, path in paths.items()}
        folders = [_absolute(folder) for folder in self.server.adapter_folders]
        engine = self.engine or self.hub.engine
        given = {**self.model_dump(), "engine": engine, **hub, **server, **absolute}
        return type(self).model_validate(given | ({"adapter_folders": folders} if folders else {}))

    def _further(self, settings: type[BaseModel]) -> dict[str, Any]:
        extra = self.model_extra or {}
        return {name: value for name, value in extra.items() if name in settings.model_fields}

    def _check_names(self) -> None:
        extra = set(self.model_extra or {})
        if extra & _OF_THE_PROXY:
            raise ConfigError(
                f"Ray's HTTP proxy decides {', '.join(sorted(extra & _OF_THE_PROXY))}.",
                hint="Set them with `serve start --http-host --http-port`, or as `http_options` of a config file.",
            )
        unknown = extra - set(HubConfig.model_fields) - set(ServerConfig.model_fields)
        if unknown:
            raise ConfigError(
                f"The application has no {', '.join(sorted(unknown))}.",
                hint="It takes the fields of ApplicationConfig, HubConfig and ServerConfig.",
            )


def _absolute(path: str | Path) -> str:
    return str(Path(path).expanduser().absolute())
