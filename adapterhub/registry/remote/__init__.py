"""Registries beyond a folder: in S3, Google Cloud Storage, on the Hugging Face Hub."""

from adapterhub.registry.remote.opening import configured_registry, open_registry
from adapterhub.registry.remote.registry import RemoteRegistry

__all__ = ["RemoteRegistry", "configured_registry", "open_registry"]
