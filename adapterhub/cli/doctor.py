"""`adapterhub doctor`: installed versions, device, 4-bit support, paths, limits, and the health of the routes."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub import __version__
from adapterhub.cli import output
from adapterhub.cli.options import json_option, open_hub, open_registry, quantization_option, registry_option
from adapterhub.cli.routes import describe, router_of
from adapterhub.errors import AdapterHubError, RoutingError

if TYPE_CHECKING:
    from adapterhub.routing import Finding

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "trl",
    "datasets",
    "matplotlib",
    "langchain-core",
    "scikit-learn",
    "llama-cpp-python",
)
_EXTRAS = {"trl": "train", "datasets": "train", "matplotlib": "train", "llama-cpp-python": "llama"}


@click.command()
@click.option("--base", help="Load this base too, and print how it is served and what proves it.")
@quantization_option
@registry_option
@json_option
def doctor(base: str | None, quantization: str | None, registry: str | Path | None, as_json: bool) -> None:
    """Print versions, device, 4-bit support, paths, limits, and what is wrong with the adapters' routes.

    \b
    Examples:
      adapterhub doctor --json
      adapterhub doctor --base adapterhub-demo
    """
    if quantization and not base:
        raise click.UsageError("--quantization says how --base is loaded: give both.")
    report = {
        "adapterhub": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        **_device(),
        **_paths(registry),
        **(_served(base, quantization, registry) if base else {}),
    }
    problem, findings = _routes(registry)
    if as_json:
        routes = {"problem": problem, "findings": [asdict(one) for one in findings]}
        output.emit_json({**report, "routes": routes})
        return
    packages = report.pop("packages")
    report["routes"] = problem or "\n".join(map(describe, findings)) or "no findings"
    output.fields([*((name, str(value)) for name, value in report.items()), *packages.items()])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        extra = _EXTRAS.get(package)
        return f'not installed; pip install "adapterhub[{extra}]"' if extra else "not installed"


def _device() -> dict[str, Any]:
    import psutil
    import torch
    from bitsandbytes.functional import has_avx512bf16

    from adapterhub.base.auto_quantization import auto_quantization
    from adapterhub.engine.kv.decode_kernel import describe_decode_attention
    from adapterhub.lora.kernels.choosing import describe_kernels

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    auto = auto_quantization("cuda" if gpu else "cpu")
    return {
        "device": gpu or f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads in use",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "4-bit": _four_bit(torch),
        "AVX512-BF16 kernel": "yes" if has_avx512bf16() else "no",
        "quantization=auto": f"{auto.quantization}: {auto.reason}",
        "LoRA kernels": describe_kernels(torch.device("cuda" if gpu else "cpu")),
        "decode attention": describe_decode_attention(torch.device("cuda" if gpu else "cpu")),
    }


def _four_bit(torch: Any) -> str:
    """Quantises and multiplies: only that shows a broken bitsandbytes."""
    from bitsandbytes.nn import Linear4bit

    try:
        layer = Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
        layer = layer.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        with torch.inference_mode():
            finite = layer(torch.ones(1, 64, device=layer.weight.device)).isfinite().all()
    except Exception as error:  # noqa: BLE001  any failure is what doctor reports
        return f"does not work: {type(error).__name__}: {error}"
    return "works (nf4)" if finite else "does not work: it gives NaN"


def _served(base: str, quantization: str | None, registry: str | Path | None) -> dict[str, Any]:
    """What kind of base it is, how it is served, and what proves that the engine computes it."""
    from adapterhub.base.describing import describe_base

    try:
        kind = describe_base(base)
        with open_hub(registry, base=base, quantization=quantization) as hub:
            stats = hub.stats()
    except AdapterHubError as error:
        return {"base": f"{base} is not served: {error}"}
    proof = "none"
    if stats.proof_difference is not None:
        proof = (
            f"logits differ by {stats.proof_difference:.2g} of their standard deviation from those of the model's own "
            f"forward pass, {stats.proof_bound:.2g} is rounding; {stats.proof_seconds:.1f} s"
        )
    return {
        "base": base,
        "kind": kind,
        "weights": f"{stats.quantization or 'unquantised'}, {stats.weight_bytes / 2**20:.0f} MiB",
        "runner": stats.runner,
        "forward": stats.forward,
        "arithmetic": "\n".join(stats.arithmetic),
        "proof": proof,
    }


def _routes(registry: str | Path | None) -> tuple[str | None, list[Finding]]:
    """The reason why no router can be fitted, or None, and the findings on its routes."""
    try:
        return None, router_of(open_registry(registry)).health()
    except RoutingError as error:
        return error.message, []


def _paths(registry: str | Path | None) -> dict[str, Any]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from adapterhub.base.locating import demo_base_folder
    from adapterhub.config import HubConfig, is_url

    adapters, settings = open_registry(registry), HubConfig.load(registry=registry)
    location = adapters.location if is_url(adapters.location) else adapters.root.absolute()
    return {
        "registry": f"{location}, {len(adapters.list())} adapters",
        "demo base": str(demo_base_folder()),
        "hub cache": HF_HUB_CACHE,
        "limits": f"{settings.max_cpu_loras} adapters in memory, {settings.max_batch_size} sequences in a batch",
    }
