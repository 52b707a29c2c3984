"""Registries beyond a folder: in S3, Google Cloud Storage, on the Hugging Face Hub."""

from adapterhub.registry.remote.opening import configured_registry, open_registry
from adapterhub.registry.remote.registry import RemoteRegistry
from adapterhub.registry.remote.syncing import SyncStep, sync_registry

__all__ = ["RemoteRegistry", "SyncStep", "configured_registry", "open_registry", "sync_registry"]
