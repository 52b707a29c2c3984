"""Proof that a runner computes what its model computes, made when the base is loaded.

Before a runner changes the model, the model's own `generate` continues two prompts, the second with a random adapter
that hooks add from outside. The same tokens then go through the runner's steps: rows that prefill and decode side by
side, a prompt in two chunks, an adapter in a LoRA slot. Logits that differ by more than rounding show attention, a
cache, positions or adapters that are wrong, on any architecture.

It sees what about twenty tokens show. What begins later, such as a window of a thousand tokens, it does not.
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
from adapterhub.engine.runner import Proof, Runner, ScheduledSequence
from adapterhub.errors import EngineError
from adapterhub.lora.delta import LoraDelta

PROMPT_TOKENS = 16
GENERATED_TOKENS = 4
_RANK = 2
_SHARE = 0.2
"""The adapter changes the output of each layer that it targets by this part of its size."""
_STEPS = (
    # The ends of the tokens computed by each step: a prompt in one piece, and one in two, so that a step holds two
    # prompts, one a token and a later piece of a prompt, and two a token of each of two lengths.
    (PROMPT_TOKENS, PROMPT_TOKENS + 1, PROMPT_TOKENS + 2, PROMPT_TOKENS + 3),
    (PROMPT_TOKENS // 2 - 1, PROMPT_TOKENS, PROMPT_TOKENS + 1, PROMPT_TOKENS + 2),
)
_CACHE_BYTES = 1 << 40
"""Caches allocate what their slots need, so this is no limit."""
_BOUNDS = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.15}
_INT8_BOUND = 0.4
"""8-bit layers round a row by what else is in the batch, whatever the dtype."""


@dataclass(frozen=True)
class Reference:
    """What the model itself computes.

    Attributes:
        token_ids: The two prompts with the tokens that follow greedily.
        logits: Of the last token of each prompt and of those that follow, shape (tokens, 2, vocabulary).
        deltas: The adapter of the second row.
        seconds: How long it took.
    """

    token_ids: Sequence[Sequence[int]]
    logits: torch.Tensor
    deltas: Mapping[str, LoraDelta]
    seconds: float

    @classmethod
    @torch.inference_mode()
    def of(cls, base: Base, *, seed: int = 0) -> Reference:
        """Runs `generate` of a base that no runner has changed yet, on random prompts with a random adapter."""
        started = time.perf_counter()
        prompts = torch.tensor(_prompts(base, seed), device=base.device)
        with _without_own_settings(base.model), _second_row_adapted(base, seed) as adapted:
            out = base.model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=GENERATED_TOKENS,
                output_logits=True,
                return_dict_in_generate=True,
            )
        deltas = {name: layer.delta for name, layer in adapted.items() if layer.delta is not None}
        seconds = time.perf_counter() - started
        return cls(out.sequences.tolist(), torch.stack(out.logits), deltas, seconds)


def prove(runner: Runner, reference: Reference, lora_slot: int, bound: float) -> Proof:
    """Runs the tokens of a reference through a runner's steps, and compares.

    Args:
        runner: A runner whose LoRA slots are empty; they are empty afterwards.
        reference: What the model itself computed.
        lora_slot: The LoRA slot that the adapter of the second row is put into.
        bound: From `rounding_bound`.

    Raises:
        EngineError: The difference is above the bound.
    """
    started = time.perf_counter()
    difference = largest_difference(runner, reference, lora_slot)
    if not difference <= bound:
        raise EngineError(
            f"Its logits differ from those of the model's own forward pass by {difference:.2g} of their standard "
            f"deviation, and rounding explains {bound:.2g}."
        )
    return Proof(difference, bound, reference.seconds + time.perf_counter() - started)


def rounding_bound(base: Base) -> float:
    """By how much logits may differ that are computed in another order, in standard deviations.

    `python -m benchmarks.proof` measures it. A base of another dtype or architecture has the largest of its kind.
    """
    return _INT8_BOUND if base.quantization == "int8" else _BOUNDS[base.matmul_dtype]


def largest_difference(runner: Runner, reference: Reference, lora_slot: int) -> float:
    """The difference of the token whose logits differ most."""
    cache, _ = runner.make_caches(_CACHE_BYTES)
    slots = [cache.allocate(len(token_ids)) for token_ids in reference.token_ids]
    runner.load_adapter(lora_slot, reference.deltas)
    try:
        largest = 0.0
        for ends in zip(*_STEPS, strict=True):
            rows = zip(slots, reference.token_ids, (None, lora_slot), ends, strict=True)
            logits = runner.step(
                [
                    ScheduledSequence(slot, token_ids[slot.length : end], lora, end >= PROMPT_TOKENS)
                    for slot, token_ids, lora, end in rows
                ]
            )
            wanted = [
                reference.logits[end - PROMPT_TOKENS, row]
                for row, end in enumerate(ends)
                if end >= PROMPT_TOKENS
            ]
            largest = max(largest, *map(_difference, logits, wanted))
        return largest
    finally:
        runner.clear_adapter(lora_slot)


def _difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """How much two tokens' logits differ: the deviation of their difference, by the standard deviation of `wanted`.

    What is added to all logits alike changes no probability, and does not count. 0 is the same distribution, and two
    of no relation have about 1.4. It is infinite where one of the two is not a number.
    """
    # Logits of minus infinity, of tokens that a model never gives, are no numbers to subtract.
    same = (got == wanted) & wanted.isinf()
    apart, spread = (got.float() - wanted)[~same].std(), wanted[~same].std()
    difference = float(apart / spread.clamp(min=torch.finfo(spread.dtype).tiny))
    return difference if math.isfinite(difference) else math.inf


def _prompts(base: Base, seed: int) -> list[list[int]]:
    """Two prompts of one length, of random tokens that have no special meaning."""
    special = {*base.tokenizer.all_special_ids, *base.tokenizer.get_added_vocab().values()}
    limit = min(base.vocabulary_size, len(base.tokenizer))
    ordinary = [token_id for token_id in range(limit) if token_id not in special] or [0]
    chosen = torch.randint(len(ordinary), (2, PROMPT_TOKENS), generator=torch.Generator().manual_seed(seed))
    return [[ordinary[index] for index in row] for row in chosen.tolist()]


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """Within it, `generate` is greedy and no token ends it: what the base's files say about sampling does not count."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _second_row_adapted(base: Base, seed: int) -> Iterator[Mapping[str, _SecondRowLora]]:
    """Within it, the second of two rows has a random adapter on some linear layers: module name -> its change."""
    random = torch.Generator().manual_seed(seed)
    shapes = base.linear_layers.shapes
    adapted = {
        name: _SecondRowLora(shapes[name], random, base.compute_dtype) for name in _first_and_last(shapes)
    }
    hooks = [
        base.model.get_submodule(name).register_forward_hook(layer.after_forward)
        for name, layer in adapted.items()
    ]
    try:
        yield adapted
    finally:
        for hook in hooks:
            hook.remove()


def _first_and_last(names: Iterable[str]) -> set[str]:
    """The first and the last layer of each kind, such as all `layers.*.self_attn.q_proj`.

    Not those of which one decoder layer has several, as experts: they get a part of the tokens.
    """
    kinds: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        if sum(part.isdigit() for part in parts) <= 1:
            kinds.setdefault(".".join("*" if part.isdigit() else part for part in parts), []).append(name)
    return {name for kind in kinds.values() for name in (kind[0], kind[-1])}


class _SecondRowLora:
    """Adds a random change of a linear layer to its output for the second of two rows.

    Args:
        shape: (out_features, in_features).
        random: Draws the change.
        dtype: The dtype of the change and of its products.

    Attributes:
        delta: The change; None while the layer's forward was not called with all tokens of two rows, so it has none.
    """

    def __init__(self, shape: tuple[int, int], random: torch.Generator, dtype: torch.dtype) -> None:
        out_features, in_features = shape
        self.delta: LoraDelta | None = None
        self._a = torch.randn(_RANK, in_features, generator=random).to(dtype)
        self._b = torch.randn(out_features, _RANK, generator=random).to(dtype)

    def after_forward(
        self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        """A forward hook; see `torch.nn.Module.register_forward_hook`."""
        x = inputs[0]
        if self.delta is None:
            if not _holds_two_rows(x):
                return output
            self.delta = self._of_a_share(x, output)
        changed = output.clone(memory_format=torch.contiguous_format)
        second = changed.view(2, -1, output.shape[-1])[1]
        own = x.reshape(2, -1, x.shape[-1])[1].float()
        second.copy_(second.float() + own @ self.delta.a.T.float() @ self.delta.b.T.float())
        return changed

    def _of_a_share(self, x: torch.Tensor, output: torch.Tensor) -> LoraDelta:
        """The change, scaled to a part of the layer's output, whatever the size of the weights."""
        a, b = self._a.to(x.device), self._b.to(x.device)
        change = x.float() @ a.T.float() @ b.T.float()
        scale = _SHARE * output.float().norm() / change.norm()
        return LoraDelta(a, b * torch.nan_to_num(scale, posinf=0).to(b.dtype))


def _holds_two_rows(x: torch.Tensor) -> bool:
    """Whether the input is that of both prompts, or of the last token of each, which the output layer gets."""
    rows = x.shape[:-1]
    return rows in ((2, PROMPT_TOKENS), (2, 1), (2 * PROMPT_TOKENS,))
