"""The error of a blend against the weighted sum of the adapters' changes, and its time, here and in PEFT.

    OMP_NUM_THREADS=1 python -m benchmarks.blend --size 2048 --rank 16

Two random adapters with weights of 0.5 on one layer of `size` x `size`. The relative error is that of the blend's whole
change, |found - sum| / |sum| in Frobenius norms; it does not depend on the size. The time is that of one layer.
`ties` does not approximate the sum: its row is there for the time.
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

from adapterhub.lora import LoraDelta
from adapterhub.lora.blending import BlendSettings, blend_deltas

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
    """The same two adapters as deltas, with weights of 0.5."""
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


def our_blend(parts: Parts, settings: BlendSettings) -> torch.Tensor:
    """The whole change of our blend."""
    delta = blend_deltas(parts, settings)[LAYER]
    return delta.b @ delta.a


def peft_blend(model: LoraModel, combination: str, **arguments: object) -> torch.Tensor:
    """The whole change of PEFT's blend."""
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "blend", combination_type=combination, **arguments)
    change: torch.Tensor = model.model[LAYER].get_delta_weight("blend")
    return change


def measure(size: int, rank: int, *, rslora: bool) -> dict[str, dict[str, float]]:
    """Method -> relative error and seconds."""
    parts = parts_of(peft_model(size, rank, rslora=rslora))
    wanted = sum(weight * deltas[LAYER].b @ deltas[LAYER].a for deltas, weight in parts)
    blends: dict[str, Callable[[], torch.Tensor]] = {
        "cat": partial(our_blend, parts, BlendSettings()),
        f"svd, rank {2 * rank}": partial(our_blend, parts, BlendSettings("svd", 2 * rank)),
        f"linear, rank {rank}": partial(our_blend, parts, BlendSettings("linear")),
        f"ties, rank {rank}": partial(our_blend, parts, BlendSettings("ties", density=0.3)),
    }
    for combination, arguments in [("cat", {}), ("svd", {"svd_rank": 2 * rank}), ("linear", {})]:
        name = next(name for name in blends if name.startswith(combination))
        model = peft_model(size, rank, rslora=rslora)
        blends[f"PEFT {name}"] = partial(peft_blend, model, combination, **arguments)
    results = {}
    for name, blend in blends.items():
        started = time.perf_counter()
        found = blend()
        seconds = time.perf_counter() - started
        results[name] = {"error": float((found - wanted).norm() / wanted.norm()), "seconds": seconds}
    return results


def main() -> None:
    """Measures and prints the figures."""
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
    for kind, methods in results.items():
        for name, figures in methods.items():
            print(f"{kind:<7}  {name:<20}{figures['error']:>15.1e}{1e3 * figures['seconds']:>9.0f} ms")


if __name__ == "__main__":
    main()
