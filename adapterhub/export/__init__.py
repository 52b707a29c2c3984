"""Export: an adapter or a blend merged into the weights of its base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.export.adapter_part import adapter_folders
    from adapterhub.export.agreement import merged_agreement
    from adapterhub.export.comparison import MergeComparison, compare_merged
    from adapterhub.export.gguf import GgufExport, GgufFile, export_gguf
    from adapterhub.export.gguf_adapter import GgufAdapterExport, export_gguf_adapter
    from adapterhub.export.llama_cpp_checkout import LlamaCppCheckout
    from adapterhub.export.lora_form import LoraForm
    from adapterhub.export.merge import MergedAdapter, MergeReport, merge_adapter
    from adapterhub.export.mlx import export_mlx
    from adapterhub.export.peft_folder import PeftExport, export_peft
    from adapterhub.export.quantized_merge import merge_quantized
    from adapterhub.export.round_trip import RoundTrip
    from adapterhub.export.vllm import VllmAdapter, VllmExport, export_vllm

__all__ = [
    "GgufAdapterExport",
    "GgufExport",
    "GgufFile",
    "LlamaCppCheckout",
    "LoraForm",
    "MergeComparison",
    "MergeReport",
    "MergedAdapter",
    "PeftExport",
    "RoundTrip",
    "VllmAdapter",
    "VllmExport",
    "adapter_folders",
    "compare_merged",
    "export_gguf",
    "export_gguf_adapter",
    "export_mlx",
    "export_peft",
    "export_vllm",
    "merge_adapter",
    "merge_quantized",
    "merged_agreement",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "GgufExport": "adapterhub.export.gguf",
        "GgufFile": "adapterhub.export.gguf",
        "export_gguf": "adapterhub.export.gguf",
        "GgufAdapterExport": "adapterhub.export.gguf_adapter",
        "export_gguf_adapter": "adapterhub.export.gguf_adapter",
        "MergeComparison": "adapterhub.export.comparison",
        "MergeReport": "adapterhub.export.merge",
        "LlamaCppCheckout": "adapterhub.export.llama_cpp_checkout",
        "LoraForm": "adapterhub.export.lora_form",
        "MergedAdapter": "adapterhub.export.merge",
        "RoundTrip": "adapterhub.export.round_trip",
        "adapter_folders": "adapterhub.export.adapter_part",
        "PeftExport": "adapterhub.export.peft_folder",
        "compare_merged": "adapterhub.export.comparison",
        "export_mlx": "adapterhub.export.mlx",
        "VllmAdapter": "adapterhub.export.vllm",
        "VllmExport": "adapterhub.export.vllm",
        "export_vllm": "adapterhub.export.vllm",
        "export_peft": "adapterhub.export.peft_folder",
        "merge_adapter": "adapterhub.export.merge",
        "merge_quantized": "adapterhub.export.quantized_merge",
        "merged_agreement": "adapterhub.export.agreement",
    },
)
