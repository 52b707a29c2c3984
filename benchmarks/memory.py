"""What the engine holds in memory, part by part, against what PEFT holds for the same adapters and answers.

    python -m benchmarks.memory --shape 200m --adapters 1 16 64

The engine has a fixed number of slots, a limit for the adapters on the host and one for keys and values; PEFT holds
every adapter in the model. Nothing is timed. On a GPU the last column is the peak that torch had allocated there at any
time, temporary tensors included.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from adapterhub.base.loading import Base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import Request
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.lora.request import StoredLoraRequest
from benchmarks.common import device_peak_mib, parser, random_adapters, random_base, report, settle
from benchmarks.contenders import kv_room_mib, load_peft, twin
from benchmarks.output import table

MIB = 1 << 20


def ours(base: Base, sources: Sequence[StoredLoraRequest], options: argparse.Namespace) -> dict[str, float]:
    """MiB of an engine that runs as many answers as fit, once every adapter has been requested."""
    limits = EngineLimits(
        max_loras=options.slots,
        max_cpu_loras=options.host,
        max_batch_size=options.rows,
        max_queue=max(len(sources), options.rows),
        kv_cache_mib=kv_room_mib(base, options.rows, options.prompt + options.tokens),
    )
    engine = BatchingEngine(twin(base), limits)
    once = SamplingParams(max_tokens=1)
    engine.generate([Request([5], source, once) for source in sources])
    sampling = SamplingParams(max_tokens=options.tokens, ignore_eos=True)
    recent = [sources[-1 - number % min(len(sources), options.slots)] for number in range(options.rows)]
    streams = [engine.stream(Request([5] * options.prompt, source, sampling)) for source in recent]
    for stream in streams:
        next(stream)
    stats = engine.stats()
    engine.close()
    return {
        "slots": stats.adapter_bytes / MIB,
        "host": stats.host_bytes / MIB,
        "keys and values": stats.kv_bytes / MIB,
        "prefix cache": stats.prefix_cache_tokens * stats.kv_bytes / max(stats.kv_tokens, 1) / MIB,
    }


def peft(base: Base, sources: Sequence[StoredLoraRequest], options: argparse.Namespace) -> dict[str, float]:
    """MiB of PEFT with the same adapters loaded and a static batch of as many answers."""
    model = load_peft(twin(base), sources)
    adapters = sum(tensor.nbytes for name, tensor in model.named_parameters() if ".lora_" in name)
    cache = DynamicCache(config=model.config)
    tokens = torch.full((options.rows, options.prompt + options.tokens), 5, device=model.device)
    with torch.inference_mode():
        model(input_ids=tokens, past_key_values=cache, logits_to_keep=1)
    kv_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return {"slots": adapters / MIB, "host": 0.0, "keys and values": kv_bytes / MIB, "prefix cache": 0.0}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    commands = parser(__doc__)
    commands.add_argument("--adapters", type=int, nargs="+", default=[1, 16, 64])
    commands.add_argument("--slots", type=int, default=16)
    commands.add_argument("--host", type=int, default=64, help="maximum number of adapters in host memory")
    commands.add_argument("--rows", type=int, default=16, help="answers that run")
    commands.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    commands.add_argument("--tokens", type=int, default=64, help="maximum tokens of each completion")
    options = commands.parse_args(arguments)
    settle(options)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        base = random_base(options, Path(scratch))
        sources = random_adapters(options, base, max(options.adapters), Path(scratch))
        for count in options.adapters:
            for name, measure in (("ours", ours), ("PEFT", peft)):
                gc.collect()  # or the contender before it would be counted too
                device_peak_mib(options.device)
                parts = {
                    "base": base.model.get_memory_footprint() / MIB,
                    **measure(base, sources[:count], options),
                }
                peak = device_peak_mib(options.device)
                results.append(
                    {
                        "adapters": count,
                        "contender": name,
                        **parts,
                        "sum": sum(parts.values()),
                        "GPU peak": peak,
                    }
                )
    titles = list(results[0])
    report(
        options,
        {"mebibytes": results},
        lambda: table(titles, [[one[title] for title in titles] for one in results]),
    )


if __name__ == "__main__":
    main()
