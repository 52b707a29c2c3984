"""What a decode step costs with adapters that change more than linear layers, over one with as many of LoRA alone.

    python -m benchmarks.slot_modules --threads 1 --pin 0 --shape 200m --quantization none

All adapters have LoRA on every projection. Beside it some have LoRA on the embedding, a whole output layer, all norms,
or rows of a hundred tokens. Every row of a step has another adapter of the same kind.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from adapterhub.base.loading import Base
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE
from benchmarks.common import interleaved, parser, random_base, ratio, report, settle, twins
from benchmarks.contenders import Ours, twin
from benchmarks.output import progress, table
from benchmarks.shapes import VOCABULARY, write_adapter

LORA, EMBEDDING, HEAD, NORMS, ROWS = "LoRA alone", "embedding", "output layer", "norms", "token rows"
_TOKENS = 100


def adapters_of(kind: str, base: Base, options: argparse.Namespace, scratch: Path) -> list[StoredLoraRequest]:
    """Adapters of a kind under different digests; their weights are one file."""
    folder = write_adapter(scratch / "source", options.shape, rank=options.rank, dtype=base.compute_dtype)
    settings, tensors = _further(kind, base, options.rank)
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | settings))
    further = {
        f"base_model.model.{name}": tensor.to(base.compute_dtype).contiguous()
        for name, tensor in tensors.items()
    }
    save_file({**load_file(folder / WEIGHTS_FILE), **further}, folder / WEIGHTS_FILE)
    return twins([folder], options.adapters, scratch / "twins")


def _further(kind: str, base: Base, rank: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The settings and tensors that an adapter of a kind has beside LoRA on the projections."""
    weights = dict(base.model.named_parameters(remove_duplicate=False))
    width = base.model.config.hidden_size
    embedding = "model.embed_tokens"
    match kind:
        case "embedding":
            a, b = torch.randn(rank, VOCABULARY), 0.01 * torch.randn(width, rank)
            return {}, {f"{embedding}.lora_embedding_A": a, f"{embedding}.lora_embedding_B": b}
        case "output layer":
            return {"modules_to_save": ["lm_head"]}, {"lm_head.weight": weights["lm_head.weight"].clone()}
        case "norms":
            norms = {name: tensor.clone() for name, tensor in weights.items() if "norm" in name}
            return {"modules_to_save": ["norm"]}, norms
        case "token rows":
            rows = {f"{embedding}.token_adapter.trainable_tokens_delta": torch.randn(_TOKENS, width)}
            return {"trainable_token_indices": list(range(3, 3 + _TOKENS))}, rows
    return {}, {}


def measure(
    contenders: Mapping[str, tuple[Ours, Sequence[StoredLoraRequest]]], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """One entry for each kind."""
    for ours, adapters in contenders.values():
        prompts = [random.choices(range(3, VOCABULARY), k=options.prompt) for _ in adapters]
        ours.start(prompts, adapters, options.rounds + 2)
    times = interleaved({kind: ours.step for kind, (ours, _) in contenders.items()}, options)
    plain = contenders[LORA][0].engine.stats().adapter_bytes
    for kind, (ours, adapters) in contenders.items():
        beside = ours.engine.stats().adapter_bytes - plain
        yield {
            "kind": kind,
            "milliseconds": 1000 * statistics.median(times[kind]),
            "over_lora": ratio(times[kind], times[LORA]),
            "mib_beside_lora": beside / len(adapters) / 2**20,
        }
        ours.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    commands = parser(__doc__)
    commands.add_argument("--adapters", type=int, default=4, help="and rows of a step")
    commands.add_argument("--prompt", type=int, default=64, help="tokens before the first step")
    options = commands.parse_args(arguments)
    settle(options)
    random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        base, contenders = random_base(options, Path(folder)), {}
        for kind in (LORA, EMBEDDING, HEAD, NORMS, ROWS):
            progress(kind)
            adapters = adapters_of(kind, base, options, Path(folder) / kind)
            tokens = options.prompt + options.rounds + 4
            contenders[kind] = Ours(twin(base), adapters, len(adapters), tokens), adapters
        results = list(measure(contenders, options))
    keys = ("kind", "milliseconds", "over_lora", "mib_beside_lora")
    report(
        options,
        {"slot_modules": results},
        lambda: table(
            ["", "ms", "over LoRA alone", "MiB beside it, each"],
            [[one[key] for key in keys] for one in results],
        ),
    )


if __name__ == "__main__":
    main()
