"""The public names of the packages for adapters on disk, and that importing a package does not import torch."""

import subprocess
import sys
from importlib import import_module

import pytest

EXPORTED = {
    "base": {
        "DEMO_BASE",
        "Base",
        "BaseFingerprint",
        "LinearLayers",
        "check_against_base",
        "check_fit",
        "demo_base_folder",
        "dequantize_module_weight",
        "disable_weight_packing",
        "is_packed",
        "linear_shape",
        "load_base",
        "locate_base",
        "tokenizer_chat_template",
    },
    "configs": {"ShippedConfig", "UserPath", "copy_config", "read_config", "shipped_configs"},
    "dataset": {
        "ComposedDataset",
        "DatasetConfig",
        "Message",
        "Record",
        "Sample",
        "SourceOptions",
        "compose_dataset",
        "read_records",
    },
    "evaluation": {
        "ComparedTraining",
        "Comparison",
        "ComparisonSettings",
        "Estimate",
        "EvaluationData",
        "EvaluationPrompt",
        "Metric",
        "Perplexity",
        "compare",
        "read_data",
        "record_on_card",
        "write_report",
    },
    "export": {
        "GgufExport",
        "GgufFile",
        "GgufAdapterExport",
        "export_gguf_adapter",
        "LlamaCppCheckout",
        "LoraForm",
        "MergeReport",
        "MergeVerification",
        "MergeVerifier",
        "MergedAdapter",
        "PeftExport",
        "Push",
        "PushedFile",
        "push_adapter",
        "push_folder",
        "RoundTrip",
        "Verification",
        "VerificationBound",
        "adapter_folders",
        "export_gguf",
        "export_mlx",
        "export_peft",
        "export_vllm",
        "VllmAdapter",
        "VllmExport",
        "merge_adapter",
        "merge_quantized",
    },
    "gguf": {"Architecture"},
    "fleet": {"ReplicaLoad", "by_affinity", "home"},
    "llama_cpp": {"GgufBase", "LlamaCppEngine", "load_gguf_base"},
    "peft_format": {
        "CONFIG_FILE",
        "WEIGHTS_FILE",
        "AdapterConfig",
        "AdapterInfo",
        "LoraSettings",
        "LoraShape",
        "TensorInfo",
        "adapter_digest",
        "check_shapes",
        "inspect_adapter",
        "parse_tensors",
        "read_header",
    },
    "registry": {
        "AdapterCard",
        "AdapterRegistry",
        "BaseInfo",
        "CardFields",
        "Evaluation",
        "Lineage",
        "Parent",
        "PeftInfo",
        "Problem",
        "PromptProfile",
        "Ref",
        "Routing",
        "Serving",
        "Source",
    },
    "reports": {"bar_chart", "histogram", "line_chart"},
    "server": {"ServerConfig", "create_app", "serve"},
    "tool_calling": {
        "HERMES",
        "ChatRequest",
        "ToolCall",
        "ToolCallChunk",
        "ToolCallFormat",
        "ToolCallFormats",
        "ToolCallParser",
        "ToolChoice",
        "argument_violations",
        "detect_format",
        "parse_tool_calls",
        "response_schema",
    },
    "training": {
        "FinetuneConfig",
        "FinetuneResult",
        "MaskedExample",
        "MemoryEstimate",
        "RunStart",
        "TrainingPlan",
        "TrainingResult",
        "TrainingStep",
        "finetune",
        "plan_finetune",
        "smoke_test",
        "train_adapter",
    },
}


@pytest.mark.parametrize(("package", "names"), EXPORTED.items(), ids=EXPORTED)
def test_the_public_names_of_a_package(package: str, names: set[str]):
    module = import_module(f"adapterhub.{package}")
    assert set(module.__all__) == names
    for name in names:
        assert getattr(module, name) is not None


def test_importing_the_packages_imports_no_torch():
    code = f"import sys, {', '.join(f'adapterhub.{package}' for package in EXPORTED)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
