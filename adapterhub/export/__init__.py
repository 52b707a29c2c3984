"""Export: an adapter or a blend, merged into its base or alone, in the formats of other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.export.adapter_part import adapter_folders
    from adapterhub.export.gguf import export_gguf
    from adapterhub.export.gguf_adapter import GgufAdapterExport, export_gguf_adapter
    from adapterhub.export.gguf_report import GgufExport, GgufFile
    from adapterhub.export.llama_cpp_checkout import LlamaCppCheckout
    from adapterhub.export.lora_form import LoraForm
    from adapterhub.export.materialising import materialise
    from adapterhub.export.merge import MergedAdapter, MergeReport, merge_adapter
    from adapterhub.export.merge_verification import MergeVerification, MergeVerifier
    from adapterhub.export.mlx import export_mlx
    from adapterhub.export.peft_folder import PeftExport, export_peft
    from adapterhub.export.push import Push, PushedFile, push_adapter, push_folder
    from adapterhub.export.quantized_merge import merge_quantized
    from adapterhub.export.round_trip import RoundTrip
    from adapterhub.export.verification import Verification, VerificationBound
    from adapterhub.export.vllm import VllmAdapter, VllmExport, export_vllm

__all__ = [
    "GgufAdapterExport",
    "GgufExport",
    "GgufFile",
    "LlamaCppCheckout",
    "LoraForm",
    "MergeReport",
    "MergeVerification",
    "MergeVerifier",
    "MergedAdapter",
    "PeftExport",
    "Push",
    "PushedFile",
    "RoundTrip",
    "Verification",
    "VerificationBound",
    "VllmAdapter",
    "VllmExport",
    "adapter_folders",
    "export_gguf",
    "export_gguf_adapter",
    "export_mlx",
    "export_peft",
    "export_vllm",
    "materialise",
    "merge_adapter",
    "merge_quantized",
    "push_adapter",
    "push_folder",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "GgufExport": "adapterhub.export.gguf_report",
        "GgufFile": "adapterhub.export.gguf_report",
        "export_gguf": "adapterhub.export.gguf",
        "GgufAdapterExport": "adapterhub.export.gguf_adapter",
        "export_gguf_adapter": "adapterhub.export.gguf_adapter",
        "MergeReport": "adapterhub.export.merge",
        "LlamaCppCheckout": "adapterhub.export.llama_cpp_checkout",
        "LoraForm": "adapterhub.export.lora_form",
        "MergeVerification": "adapterhub.export.merge_verification",
        "MergeVerifier": "adapterhub.export.merge_verification",
        "MergedAdapter": "adapterhub.export.merge",
        "Push": "adapterhub.export.push",
        "PushedFile": "adapterhub.export.push",
        "push_adapter": "adapterhub.export.push",
        "push_folder": "adapterhub.export.push",
        "RoundTrip": "adapterhub.export.round_trip",
        "Verification": "adapterhub.export.verification",
        "VerificationBound": "adapterhub.export.verification",
        "adapter_folders": "adapterhub.export.adapter_part",
        "PeftExport": "adapterhub.export.peft_folder",
        "export_mlx": "adapterhub.export.mlx",
        "VllmAdapter": "adapterhub.export.vllm",
        "VllmExport": "adapterhub.export.vllm",
        "export_vllm": "adapterhub.export.vllm",
        "export_peft": "adapterhub.export.peft_folder",
        "materialise": "adapterhub.export.materialising",
        "merge_adapter": "adapterhub.export.merge",
        "merge_quantized": "adapterhub.export.quantized_merge",
    },
)
