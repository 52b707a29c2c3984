"""A mixture's experts with what adapters change about them, token by token and expert by expert.

What experts compute is fixed by transformers' `ExpertsInterface` (`transformers/integrations/moe.py`): up, gate, down,
each token through the experts that its router chose. Here the tokens of one expert are adjoining, and within them those
of one adapter, so that the base's products are those without adapters, and each adapter adds two small ones:
`x W + (x A) B`, one pair of A and B for each expert (PEFT's `ParamWrapper` adds B A to W instead).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch

from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.parameter_delta import ParameterDelta


class RoutedTokens:
    """The tokens of a step in the order of their experts and adapters; a token is there once for each of its experts.

    Args:
        top_k_index: The experts of each token, shape (tokens, k).
        top_k_weights: Their weights, shape (tokens, k).
        mapping: The adapters of the tokens.
        num_experts: The number of experts; a higher index means none.

    Attributes:
        order: The position of each among (tokens x k).
        tokens: Its token.
        weights: The weight of its expert.
        runs: (expert, slot, start, stop) of each run with one expert and one adapter; the base's slot is -1.
        experts: (expert, start, stop) of each run with one expert.
    """

    def __init__(
        self, top_k_index: torch.Tensor, top_k_weights: torch.Tensor, mapping: LoraMapping, num_experts: int
    ) -> None:
        k, slots = top_k_index.shape[-1], mapping.end_slot + 1  # with the base
        runs = mapping.runs_of(len(top_k_index))
        of_run = [0 if slot is None else slot + 1 for slot, _, _ in runs]
        lengths = [(stop - start) * k for _, start, stop in runs]
        of_token = torch.tensor(of_run).repeat_interleave(torch.tensor(lengths)).to(top_k_index.device)
        keys, self.order = torch.sort(top_k_index.reshape(-1) * slots + of_token, stable=True)
        self.tokens = self.order // k
        self.weights = top_k_weights.reshape(-1)[self.order, None]
        self.runs: list[tuple[int, int, int, int]] = []
        present, counts = torch.unique_consecutive(keys, return_counts=True)
        start = 0
        for key, count in zip(present.tolist(), counts.tolist(), strict=True):
            expert, slot = divmod(key, slots)
            if expert < num_experts:
                self.runs.append((expert, slot - 1, start, start + count))
            start += count
        self.experts: list[tuple[int, int, int]] = []
        for expert, grouped in groupby(self.runs, lambda run: run[0]):
            of_expert = list(grouped)
            self.experts.append((expert, of_expert[0][2], of_expert[-1][3]))


def experts_forward(
    experts: Any, hidden_states: torch.Tensor, routed: RoutedTokens, loaded: Mapping[int, ParameterDelta]
) -> torch.Tensor:
    """What a mixture's experts compute for tokens with adapters.

    Args:
        experts: The base's module, under `ExpertsInterface`.
        hidden_states: The tokens, shape (tokens, features).
        routed: Their experts and adapters.
        loaded: What the adapter in a slot changes about the module.

    Returns:
        Shape (tokens, features).
    """
    x = hidden_states[routed.tokens]
    if experts.has_gate:
        x = experts._apply_gate(_product("gate_up_proj", x, experts, routed, loaded))
    else:
        x = experts.act_fn(_product("up_proj", x, experts, routed, loaded))
    x = _product("down_proj", x, experts, routed, loaded)
    if experts.has_post_expert_norm:
        x = experts.post_expert_norm(x)
    weighted = torch.empty_like(x, dtype=torch.result_type(x, routed.weights))
    weighted[routed.order] = x * routed.weights
    return weighted.view(len(hidden_states), -1, x.shape[-1]).sum(1).to(hidden_states.dtype)


def _product(
    name: str, x: torch.Tensor, experts: Any, routed: RoutedTokens, loaded: Mapping[int, ParameterDelta]
) -> torch.Tensor:
    """Each token through one matrix of its expert, with the bias and the change of its adapter."""
    weight = getattr(experts, name) if experts.is_transposed else getattr(experts, name).transpose(1, 2)
    x = x.to(weight.dtype)
    y = x.new_zeros(len(x), weight.shape[2])
    for expert, start, stop in routed.experts:
        torch.mm(x[start:stop], weight[expert], out=y[start:stop])
        if experts.has_bias:
            y[start:stop] += getattr(experts, f"{name}_bias")[expert]
    changes = {slot: factors for slot, delta in loaded.items() if (factors := delta.factors.get(name))}
    for expert, slot, start, stop in routed.runs:
        if slot in changes:
            a, b = changes[slot]
            y[start:stop].addmm_(x[start:stop] @ a[expert].T, b[expert].T)
    return y
