"""Opening a registry by where it is: a folder or a URL."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from adapterhub._files import user_path
from adapterhub.config import HubConfig, cache_folder, is_url, registry_location
from adapterhub.errors import ConfigError
from adapterhub.registry.remote.conditional import conditional_writes
from adapterhub.registry.remote.hub_store import HubStore
from adapterhub.registry.remote.memory import memory_files
from adapterhub.registry.remote.object_store import ObjectStore
from adapterhub.registry.remote.registry import REFRESH_S, RemoteRegistry
from adapterhub.registry.remote.store import Store
from adapterhub.registry.remote.urls import RegistryUrl
from adapterhub.registry.store import AdapterRegistry

_MIB = 2**20
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


def open_registry(
    location: str | Path,
    *,
    cache: str | Path | None = None,
    refresh: float = REFRESH_S,
    max_cache_bytes: int = 20_480 * _MIB,
    storage_options: Mapping[str, Any] | None = None,
) -> AdapterRegistry:
    """Opens the registry in a folder or at a URL.

    Args:
        location: A folder; `s3://bucket/prefix`, `gs://bucket/prefix`, `hf://organisation/name` (or
            `hf://datasets/organisation/name`), `memory://name` for tests, or a URL of another fsspec file system, which
            is only read. Credentials come from where the store's own library looks for them.
        cache: The folder for what is downloaded, on a local disk; if not given, `ADAPTERHUB_CACHE` or the user's folder
            for caches. Processes may share it.
        refresh: Seconds between two looks for changes in a store.
        max_cache_bytes: Above it, downloaded versions that were used longest ago are removed.
        storage_options: Further arguments of the fsspec file system, such as `endpoint_url`, or of `HfApi`.

    Raises:
        ConfigError: The URL is not valid, the package for it is not installed, or the store cannot be opened.
    """
    if not is_url(location):
        return AdapterRegistry(location)
    url = RegistryUrl.parse(str(location))
    folder = user_path(cache, ConfigError) if cache else cache_folder("registries")
    open_store = partial(_open_store, url, storage_options or {})
    return RemoteRegistry(
        open_store(),
        str(url),
        folder / url.slug,
        refresh=refresh,
        max_cache_bytes=max_cache_bytes,
        reopen=open_store,
    )


def configured_registry(config: HubConfig) -> AdapterRegistry:
    """Opens the registry that the settings of a hub name; raises as `open_registry`."""
    return open_registry(
        registry_location(config.registry),
        refresh=config.registry_refresh,
        max_cache_bytes=config.registry_cache_mib * _MIB,
    )


def _open_store(url: RegistryUrl, options: Mapping[str, Any]) -> Store:
    if url.protocol == "hf":
        return HubStore(url, options)
    if url.protocol in ("file", "local"):
        raise ConfigError(f"{url.protocol}:// is a folder of this machine.", hint="Give the folder's path.")
    import fsspec

    try:
        kind = memory_files() if url.protocol == "memory" else fsspec.get_filesystem_class(url.protocol)
    except ValueError as error:
        raise ConfigError(
            f"There is no store {url.protocol}://.", hint="Use s3://, gs://, hf:// or a folder."
        ) from error
    except ImportError as error:
        package = _PACKAGES.get(url.protocol, f"fsspec's package for {url.protocol}")
        raise ConfigError(
            f"{url.protocol}:// needs a package that is not installed.", hint=f"pip install {package}"
        ) from error
    try:
        fs = kind(use_listings_cache=False, skip_instance_cache=True, **options)
    except Exception as error:  # noqa: BLE001  # each library has its own, and its text may hold a key
        raise ConfigError(
            f"{url} could not be opened ({type(error).__name__}).",
            hint="Check the credentials of this machine, and storage_options, which this kind of store may need.",
        ) from None
    return ObjectStore(
        fs, kind._strip_protocol(str(url)), str(url), conditional_writes(url.protocol, fs, str(url))
    )
