"""What adapters of a mixture's experts cost: one layer's experts, for the tokens of one step.

    python -m benchmarks.experts --threads 1 --clock cpu --tokens 1 8 32 256 --adapters 1 8

The base is transformers' own product of grouped matrices. Ours is the same tokens, each with one of the adapters, its
factors of LoRA for each expert in a slot. PEFT adds the product of the factors to the weights of all experts in every
forward pass, and computes one adapter after the other. The experts are random; `--hidden`, `--inner` and `--experts`
are their sizes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from adapterhub.lora.layers import CurrentMapping
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.parameter_delta import ExpertFactors, ParameterDelta
from adapterhub.lora.parameter_layers import ParametersWithLora
from benchmarks.common import Times, interleaved, parser, ratio, report, settle
from benchmarks.output import table

BASE, OURS, PEFT = "base", "ours", "PEFT, one after the other"
PARAMETERS = ("gate_up_proj", "down_proj")


class Experts:
    """One layer's experts alone, with adapters under PEFT and in slots."""

    def __init__(self, options: argparse.Namespace) -> None:
        sizes = {"hidden_size": options.hidden, "moe_intermediate_size": options.inner}
        config: Any = SimpleNamespace(
            **sizes, num_experts=options.experts, hidden_act="silu", _experts_implementation="grouped_mm"
        )
        self.base = Qwen3MoeExperts(config)
        for parameter in self.base.parameters():
            nn.init.normal_(parameter, std=0.02)
        self._options = options
        self._current = CurrentMapping()
        weights = ParametersWithLora.new_weights(self.base, slots=options.slots, dtype=torch.float32)
        for slot in range(options.slots):
            weights.load(slot, {"experts": self._random_delta()})
        self._wrapped = ParametersWithLora(self.base, "experts", weights, self._current)
        lora = LoraConfig(r=options.rank, target_modules=[], target_parameters=list(PARAMETERS))
        self._peft = get_peft_model(nn.ModuleDict({"experts": self.base}), lora).base_model.model["experts"]

    @property
    def slot_mib(self) -> float:
        """Memory of one adapter in this layer, MiB."""
        return self._random_delta().bytes / 2**20

    def contenders(self, tokens: int, adapters: int) -> dict[str, Callable[[], object]]:
        """The same tokens through each."""
        x = torch.randn(tokens, self._options.hidden)
        experts = torch.rand(tokens, self._options.experts).topk(self._options.top_k).indices
        routed = (experts, torch.full(experts.shape, 1 / self._options.top_k))
        runs = [(slot, tokens // adapters) for slot in range(adapters)]
        mapping = LoraMapping(runs)

        def ours() -> None:
            self._current.mapping = mapping
            self._wrapped(x, *routed)

        def peft() -> None:
            for _, start, stop in mapping.runs:
                self._peft(x[start:stop], *(one[start:stop] for one in routed))

        return {BASE: lambda: self.base(x, *routed), OURS: ours, PEFT: peft}

    def _random_delta(self) -> ParameterDelta:
        return ParameterDelta(
            {name: self._random_factors(*getattr(self.base, name).shape) for name in PARAMETERS}
        )

    def _random_factors(self, experts: int, out_features: int, in_features: int) -> ExpertFactors:
        a = torch.randn(experts, self._options.rank, in_features)
        return ExpertFactors(a, torch.randn(experts, self._options.rank, out_features).transpose(1, 2))


@torch.inference_mode()
def measure(experts: Experts, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry for each contender, number of tokens and number of different adapters."""
    results = []
    for tokens in options.tokens:
        for adapters in (count for count in options.adapters if count <= tokens):
            times: Times = interleaved(experts.contenders(tokens, adapters), options)
            results += [
                {
                    "tokens": tokens,
                    "adapters": adapters,
                    "contender": name,
                    "milliseconds": 1000 * statistics.median(taken),
                    "over_base": ratio(taken, times[BASE]),
                }
                for name, taken in times.items()
            ]
    return results


def show(results: list[dict[str, Any]], slot_mib: float) -> None:
    """Prints the table."""
    keys = ("contender", "tokens", "adapters", "milliseconds", "over_base")
    table(["", "tokens", "adapters", "ms", "over base"], [[one[key] for key in keys] for one in results])
    print(f"\none adapter takes {slot_mib:.1f} MiB of its slot in this layer")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    commands = parser(__doc__)
    commands.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 32, 256])
    commands.add_argument("--adapters", type=int, nargs="+", default=[1, 8])
    commands.add_argument("--hidden", type=int, default=1024)
    commands.add_argument("--inner", type=int, default=512, help="the width of an expert")
    commands.add_argument("--experts", type=int, default=32)
    commands.add_argument("--top-k", type=int, default=4, help="experts of a token")
    options = commands.parse_args(arguments)
    options.slots = max(options.adapters)
    settle(options)
    experts = Experts(options)
    results = measure(experts, options)
    report(
        options,
        {"experts": results, "slot_mib": experts.slot_mib},
        lambda: show(results, experts.slot_mib),
    )


if __name__ == "__main__":
    main()
