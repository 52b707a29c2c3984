"""What a base's model computes itself, before a runner changes it: the reference of its proof.

`generate` continues two prompts, the second one with a random adapter that forward hooks add from outside, so nothing
that serves adapters takes part.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from adapterhub.base.loading import Base
from adapterhub.lora.delta import LoraDelta

_RANK = 2
_SHARE = 0.2
"""The adapter changes the output of each layer that it targets by this part of its size."""


@dataclass(frozen=True)
class Continuation:
    """A prompt and what follows it greedily.

    Attributes:
        token_ids: The prompt and all but the last of the tokens that follow.
        logits: Of the prompt's last token and of those that follow, shape (tokens, vocabulary).
    """

    token_ids: Sequence[int]
    logits: torch.Tensor


@dataclass(frozen=True)
class Reference:
    """Two continuations that the model itself computed.

    Attributes:
        base: Without an adapter.
        adapted: With the adapter.
        deltas: The adapter.
        seconds: How long it took.
    """

    base: Continuation
    adapted: Continuation
    deltas: Mapping[str, LoraDelta]
    seconds: float

    @classmethod
    @torch.inference_mode()
    def of(cls, base: Base, lengths: tuple[tuple[int, int], tuple[int, int]], *, seed: int = 0) -> Reference:
        """Runs `generate` of a base that no runner has changed yet.

        Args:
            base: The base; it is as before afterwards.
            lengths: For each of the two, the number of tokens in its prompt and of those whose logits are computed.
            seed: Of the prompts and of the adapter.
        """
        started = time.perf_counter()
        prompts = [_prompt(base, length, seed + index) for index, (length, _) in enumerate(lengths)]
        (_, first), (adapted_length, second) = lengths
        with _without_own_settings(base.model):
            plain = _continue(base.model, prompts[0], first)
            with _adapted(base, adapted_length, seed) as layers:
                adapted = _continue(base.model, prompts[1], second)
        deltas = {name: layer.delta for name, layer in layers.items() if layer.delta is not None}
        return cls(plain, adapted, deltas, time.perf_counter() - started)


def _continue(model: Any, prompt: Sequence[int], count: int) -> Continuation:
    token_ids = torch.tensor([prompt], device=model.device)
    out = model.generate(
        input_ids=token_ids,
        attention_mask=torch.ones_like(token_ids),
        max_new_tokens=count,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return Continuation(out.sequences[0, :-1].tolist(), torch.cat(out.logits))


def _prompt(base: Base, length: int, seed: int) -> list[int]:
    """Random tokens that have no special meaning."""
    special = {*base.tokenizer.all_special_ids, *base.tokenizer.get_added_vocab().values()}
    limit = min(base.vocabulary_size, len(base.tokenizer))
    ordinary = [token_id for token_id in range(limit) if token_id not in special] or [0]
    chosen = torch.randint(len(ordinary), (length,), generator=torch.Generator().manual_seed(seed))
    return [ordinary[index] for index in chosen.tolist()]


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """Within it, `generate` is greedy and no token ends it: what the base's files say about sampling does not count."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _adapted(base: Base, prompt_length: int, seed: int) -> Iterator[Mapping[str, _HookedLora]]:
    """Within it, the model has a random adapter on some linear layers: module name -> its change."""
    random = torch.Generator().manual_seed(seed)
    shapes = base.linear_layers.shapes
    layers = {
        name: _HookedLora(shapes[name], prompt_length, random, base.compute_dtype)
        for name in _first_and_last(shapes)
    }
    hooks = [
        base.model.get_submodule(name).register_forward_hook(layer.after_forward)
        for name, layer in layers.items()
    ]
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


def _first_and_last(names: Iterable[str]) -> list[str]:
    """The first and the last layer of each kind, such as all `layers.*.self_attn.q_proj`.

    Not those of which one decoder layer has several, as experts: they get a part of the tokens.
    """
    kinds: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        if sum(part.isdigit() for part in parts) <= 1:
            kinds.setdefault(".".join("*" if part.isdigit() else part for part in parts), []).append(name)
    return list(dict.fromkeys(name for kind in kinds.values() for name in (kind[0], kind[-1])))


class _HookedLora:
    """Adds a random change of a linear layer to its output.

    Args:
        shape: (out_features, in_features).
        prompt_length: Tokens in the prompt, which is computed first.
        random: Draws the change.
        dtype: The dtype of the change.

    Attributes:
        delta: The change; None if the layer was not called with the tokens of the prompt, so it has none.
    """

    def __init__(
        self, shape: tuple[int, int], prompt_length: int, random: torch.Generator, dtype: torch.dtype
    ) -> None:
        out_features, in_features = shape
        self.delta: LoraDelta | None = None
        self._counts = (prompt_length, 1)  # the output layer may get the last token only
        self._a = torch.randn(_RANK, in_features, generator=random).to(dtype)
        self._b = torch.randn(out_features, _RANK, generator=random).to(dtype)

    def after_forward(
        self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        """A forward hook; see `torch.nn.Module.register_forward_hook`."""
        x = inputs[0]
        if self.delta is None:
            if math.prod(x.shape[:-1]) not in self._counts:
                return output
            self.delta = self._of_a_share(x, output)
        # In float32, so that it is rounded once, as the engine's products are.
        return (output.float() + _product(x, self.delta.a, self.delta.b)).to(output.dtype)

    def _of_a_share(self, x: torch.Tensor, output: torch.Tensor) -> LoraDelta:
        """The change, scaled to a part of the layer's output, whatever the size of the weights."""
        a, b = self._a.to(x.device), self._b.to(x.device)
        scale = _SHARE * output.float().norm() / _product(x, a, b).norm()
        return LoraDelta(a, b * torch.nan_to_num(scale, posinf=0).to(b.dtype))


def _product(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return x.float() @ a.T.float() @ b.T.float()
