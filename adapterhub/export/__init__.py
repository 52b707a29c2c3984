"""Exports: from a base and an adapter to a model that stands alone."""
