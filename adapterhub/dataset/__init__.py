"""Composing training data: from sources in many formats to checked JSON Lines of conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.dataset.composed import ComposedDataset
    from adapterhub.dataset.composing import compose_dataset
    from adapterhub.dataset.config import DatasetConfig, SourceOptions
    from adapterhub.dataset.records import Message, Record, Sample, read_records

__all__ = [
    "ComposedDataset",
    "DatasetConfig",
    "Message",
    "Record",
    "Sample",
    "SourceOptions",
    "compose_dataset",
    "read_records",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "ComposedDataset": "adapterhub.dataset.composed",
        "DatasetConfig": "adapterhub.dataset.config",
        "Message": "adapterhub.dataset.records",
        "Record": "adapterhub.dataset.records",
        "Sample": "adapterhub.dataset.records",
        "SourceOptions": "adapterhub.dataset.config",
        "compose_dataset": "adapterhub.dataset.composing",
        "read_records": "adapterhub.dataset.records",
    },
)
