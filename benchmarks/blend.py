"""How far a blend is from the weighted sum of the adapters' changes, and how long it takes, here and in PEFT.

    OMP_NUM_THREADS=1 python -m benchmarks.blend --size 2048 --rank 16

Two random adapters, half and half, on one layer of `size` x `size`; the error is that of the blend's whole change,
|found - sum| / |sum| (Frobenius norms). It does not depend on the size; the time does, and is that of one layer.
`ties` does not aim at the sum: its row is there for the time.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from peft import LoraConfig, LoraModel
from torch import nn

from adapterhub.lora.blending.methods import BlendSettings, blend_deltas
from adapterhub.lora.delta import LoraDelta

LAYER = "layer"
Parts = list[tuple[dict[str, LoraDelta], float]]


def peft_model(size: int, rank: int, *, rslora: bool) -> LoraModel:
    """One linear layer with two random adapters, `a` and `b`."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=[LAYER], init_lora_weights=False, use_rslora=rslora
    )
    model = LoraModel(nn.ModuleDict({LAYER: nn.Linear(size, size, bias=False)}), config, "a")
    model.peft_config["b"] = config
    model.inject_adapter(model.model, "b")
    return model


def parts_of(model: LoraModel) -> Parts:
    """The same two adapters as changes, half each."""
    layer = model.model[LAYER]
    return [
        (
            {
                LAYER: LoraDelta(
                    layer.lora_A[name].weight.data, layer.lora_B[name].weight.data * layer.scaling[name]
                )
            },
            0.5,
        )
        for name in ("a", "b")
    ]


def ours(parts: Parts, settings: BlendSettings) -> torch.Tensor:
    """The whole change of our blend."""
    delta = blend_deltas(parts, settings)[LAYER]
    return delta.b @ delta.a


def pefts(model: LoraModel, combination: str, **arguments: object) -> torch.Tensor:
    """The whole change of PEFT's blend."""
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "blend", combination_type=combination, **arguments)
    change: torch.Tensor = model.model[LAYER].get_delta_weight("blend")
    return change


def measure(size: int, rank: int, *, rslora: bool) -> dict[str, dict[str, float]]:
    """Way of blending -> error and seconds."""
    parts = parts_of(peft_model(size, rank, rslora=rslora))
    wanted = sum(weight * deltas[LAYER].b @ deltas[LAYER].a for deltas, weight in parts)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "cat": partial(ours, parts, BlendSettings()),
        f"svd, rank {2 * rank}": partial(ours, parts, BlendSettings("svd", 2 * rank)),
        f"linear, rank {rank}": partial(ours, parts, BlendSettings("linear")),
        f"ties, rank {rank}": partial(ours, parts, BlendSettings("ties", density=0.3)),
    }
    for name, arguments in [("cat", {}), ("svd", {"svd_rank": 2 * rank}), ("linear", {})]:
        way = next(way for way in ways if way.startswith(name))
        ways[f"PEFT {way}"] = partial(pefts, peft_model(size, rank, rslora=rslora), name, **arguments)
    results = {}
    for way, blend in ways.items():
        started = time.perf_counter()
        found = blend()
        seconds = time.perf_counter() - started
        results[way] = {"error": float((found - wanted).norm() / wanted.norm()), "seconds": seconds}
    return results


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results = {
        kind: measure(options.size, options.rank, rslora=kind == "rsLoRA") for kind in ("LoRA", "rsLoRA")
    }
    if options.json:
        print(json.dumps({"size": options.size, "rank": options.rank, "results": results}, indent=2))
        return
    print(f"{'':<29}{'relative error':>15}{'time':>12}")
    for kind, ways in results.items():
        for way, one in ways.items():
            print(f"{kind:<7}  {way:<20}{one['error']:>15.1e}{1e3 * one['seconds']:>9.0f} ms")


if __name__ == "__main__":
    main()
