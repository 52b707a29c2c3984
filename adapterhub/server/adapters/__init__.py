"""Adapters over HTTP: from allowed folders and uploads into the registry, in and out of serving, and where they are."""
