"""Export: an adapter merged into the 16-bit weights of its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.export.agreement import merged_agreement
    from adapterhub.export.comparison import MergeComparison, compare_merged
    from adapterhub.export.merge import MergeReport, merge_adapter
    from adapterhub.export.peft_folder import PeftExport, export_peft

__all__ = [
    "MergeComparison",
    "MergeReport",
    "PeftExport",
    "compare_merged",
    "export_peft",
    "merge_adapter",
    "merged_agreement",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "MergeComparison": "adapterhub.export.comparison",
        "MergeReport": "adapterhub.export.merge",
        "PeftExport": "adapterhub.export.peft_folder",
        "compare_merged": "adapterhub.export.comparison",
        "export_peft": "adapterhub.export.peft_folder",
        "merge_adapter": "adapterhub.export.merge",
        "merged_agreement": "adapterhub.export.agreement",
    },
)
