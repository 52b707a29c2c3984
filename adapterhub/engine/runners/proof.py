"""Proof that a runner computes what its model computes, made when the base is loaded.

What the model's own `generate` computed goes through the runner's steps: sequences that prefill and decode side by
side, a prompt in two chunks, an adapter in a LoRA slot. Logits that differ by more than rounding show attention, a
cache, positions or adapters that are wrong, on any architecture.

It sees what a dozen tokens show. What begins later, such as a window of a thousand tokens, it does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adapterhub.base.loading import Base
from adapterhub.base.packed_linear import dense_from
from adapterhub.engine.runner import Proof, Runner, ScheduledSequence
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.engine.runners.reference import Continuation, Reference
from adapterhub.engine.runners.row_by_row import RowRunner
from adapterhub.errors import EngineError

_PROMPTS = (12, 9)
_ENDS = ((12, 13, 14, 15), (4, 9, 10, 11))
"""How far each step computes the two sequences: two prompts, one of them in part; a token beside the rest of a prompt;
two tokens, at different lengths, and two more, for which a captured graph is replayed."""
_DENSE_TOKENS = _PROMPTS[0]
"""Layers with a dense product for many tokens take it for the prompts; the reference and the later steps are packed."""
_CACHE_BYTES = 1 << 40
"""Caches allocate what their slots need, so this is no limit."""
_BOUNDS = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
_INT8_BOUND = 0.4
"""8-bit layers round a token by what else is in the batch, whatever the dtype."""
_TRIES = 3
"""Rounding to 16 bits may choose another expert of a mixture, and that of 8-bit layers what they round apart; what is
wrong is wrong each time."""


def compute_reference(base: Base, *, seed: int = 0) -> Reference:
    """What the model of a base that no runner has changed computes of the sequences of the proof."""
    counts = (sum(end >= prompt for end in ends) for prompt, ends in zip(_PROMPTS, _ENDS, strict=True))
    first, second = zip(_PROMPTS, counts, strict=True)
    return Reference.of(base, (first, second), seed=seed)


class Prover:
    """Proves the runners of a base.

    Args:
        base: A base that no runner has changed yet.
        lora_slot: The LoRA slot that the adapter of the proof is put into.
    """

    def __init__(self, base: Base, lora_slot: int) -> None:
        self._base, self._lora_slot = base, lora_slot
        self._bound = rounding_bound(base)
        self._references = [compute_reference(base)]
        self._seconds = self._references[0].seconds

    def prove(self, make: Callable[[], PackedRunner | RowRunner]) -> PackedRunner | RowRunner:
        """Makes a runner, and proves it.

        Raises:
            Exception: The runner cannot be made, it fails, or (`EngineError`) its logits differ by more than rounding.
                The model is as it was before.
        """
        least = math.inf
        for seed in range(1 if self._bound == _BOUNDS[torch.float32] else _TRIES):
            reference = self._reference(seed)
            runner = make()
            try:
                started = time.perf_counter()
                with dense_from(self._base.model, _DENSE_TOKENS):
                    difference = largest_difference(runner, reference, self._lora_slot)
                self._seconds += time.perf_counter() - started
                if difference <= self._bound:
                    runner.unwrap()
                    runner.proof = Proof(difference, self._bound, self._seconds)
                    return runner
            except BaseException:
                runner.release()
                raise
            runner.release()
            least = min(least, difference)
        raise EngineError(
            f"Its logits differ from those of the model's own forward pass by {least:.2g} of their standard deviation, "
            f"and rounding explains {self._bound:.2g}."
        )

    def _reference(self, seed: int) -> Reference:
        if seed == len(self._references):
            self._references.append(compute_reference(self._base, seed=seed))
            self._seconds += self._references[seed].seconds
        return self._references[seed]


def rounding_bound(base: Base) -> float:
    """By how much logits may differ that are computed in another order, in standard deviations.

    `python -m benchmarks.proof` measures it.
    """
    return _INT8_BOUND if base.quantization == "int8" else _BOUNDS[base.matmul_dtype]


def largest_difference(runner: Runner, reference: Reference, lora_slot: int) -> float:
    """The difference of the token whose logits differ most.

    Args:
        runner: A runner whose LoRA slots are empty; they are empty afterwards.
        reference: From `compute_reference`.
        lora_slot: The LoRA slot that its adapter is put into.
    """
    cache, _ = runner.make_caches(_CACHE_BYTES)
    rows = [
        _Row(cache.allocate(len(one.token_ids)), one, slot, prompt, ends)
        for one, slot, prompt, ends in zip(
            (reference.base, reference.adapted), (None, lora_slot), _PROMPTS, _ENDS, strict=True
        )
    ]
    runner.load_adapter(lora_slot, reference.deltas)
    try:
        largest = 0.0
        for step in range(len(_ENDS[0])):
            logits = runner.step([row.scheduled(step) for row in rows])
            wanted = [one for row in rows if (one := row.wanted(step)) is not None]
            largest = max(largest, *map(_difference, logits, wanted))
        return largest
    finally:
        runner.clear_adapter(lora_slot)


@dataclass(frozen=True)
class _Row:
    """One sequence on its way through the steps."""

    slot: Any
    continuation: Continuation
    lora_slot: int | None
    prompt: int
    ends: Sequence[int]

    def scheduled(self, step: int) -> ScheduledSequence:
        end = self.ends[step]
        token_ids = self.continuation.token_ids[self.slot.length : end]
        return ScheduledSequence(self.slot, token_ids, self.lora_slot, needs_logits=end >= self.prompt)

    def wanted(self, step: int) -> torch.Tensor | None:
        """The logits that the model gave; None within the prompt."""
        token = self.ends[step] - self.prompt
        return self.continuation.logits[token] if token >= 0 else None


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
