"""Where servers find the folders of adapters: at the same path, or where they have mounted the registry."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import ConfigError
from adapterhub.lora.request import StoredLoraRequest, fetch_files


@dataclass(frozen=True)
class AdapterFolders:
    """Translates paths here to paths on the servers.

    Attributes:
        registry: The registry's folder here.
        mounted_at: The same folder on the servers; None if its path is the same.

    Raises:
        ConfigError: `mounted_at` is not absolute, or there is no registry.
    """

    registry: Path | None = None
    mounted_at: Path | None = None

    def __post_init__(self) -> None:
        if self.mounted_at is None:
            return
        if self.registry is None:
            raise ConfigError("adapters_at needs a registry, whose folder it is on the servers.")
        if not self.mounted_at.is_absolute():
            raise ConfigError(
                f"adapters_at={str(self.mounted_at)!r} is not an absolute path.",
                hint="Give the path at which the servers have mounted the registry, such as /mnt/adapters.",
            )

    async def fetch(self, adapter: StoredLoraRequest) -> None:
        """Downloads the files of an adapter if its registry is in a store and they are not here yet.

        Raises:
            RegistryError: They cannot be downloaded, or are not those that were registered.
        """
        if adapter.may_download:
            await asyncio.to_thread(fetch_files, adapter)

    def on_server(self, adapter: StoredLoraRequest) -> Path:
        """The folder of an adapter, as the servers see it.

        Raises:
            ConfigError: The servers have mounted the registry, and the adapter is not in it.
        """
        folder = adapter.folder.absolute()
        if self.registry is None or self.mounted_at is None:
            return folder
        root = self.registry.absolute()
        if not folder.is_relative_to(root):
            raise ConfigError(
                f"The folder of {adapter.name} is not in the registry, so servers cannot see it."
            )
        return self.mounted_at / folder.relative_to(root)
