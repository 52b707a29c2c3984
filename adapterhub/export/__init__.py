"""Export: an adapter merged into the 16-bit weights of its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.export.agreement import merged_agreement
    from adapterhub.export.merge import MergeReport, merge_adapter

__all__ = [
    "MergeReport",
    "merge_adapter",
    "merged_agreement",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "MergeReport": "adapterhub.export.merge",
        "merge_adapter": "adapterhub.export.merge",
        "merged_agreement": "adapterhub.export.agreement",
    },
)
