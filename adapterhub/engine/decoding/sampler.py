"""Drawing one token from a row of logits, with transformers' own logits processors where they are quick.

Two things are done otherwise, since each row of each step waits for them (`benchmarks/sampling.py` compares). For
`top_p` transformers puts the whole vocabulary in order, and `torch.multinomial` draws a number for each of its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from adapterhub.engine.interface import TokenLogprob
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import GenerationError

# Beyond every logit, and finite in float32 after the repetition penalty and the lowest temperature.
_FAR = 1e30
_LIKELY = 1024
"""Tokens among which `top_p` looks first."""


@dataclass(frozen=True)
class Logits:
    """What the base says about one answer's next token.

    Attributes:
        values: Shape (vocabulary,).
        best: The token with the highest value.
        highest: That value; NaN if any value is.
    """

    values: torch.Tensor
    best: int
    highest: float

    @classmethod
    def of(cls, rows: torch.Tensor) -> list[Logits]:
        """Those of several answers, shape (answers, vocabulary), looked through in one pass."""
        if not len(rows):
            return []
        highest, best = rows.max(-1)
        return [cls(*row) for row in zip(rows, best.tolist(), highest.tolist(), strict=True)]


class Sampler:
    """Draws the tokens of one answer.

    Args:
        params: The request's settings.
        index: Which of the request's `n` answers this is; each has its own random stream.
        device: Where the logits are.
    """

    def __init__(self, params: SamplingParams, index: int, device: torch.device) -> None:
        self._params = params
        self._processors = _processors(params)
        self._random = torch.Generator(device)
        if params.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed((params.seed + index) % 2**63)

    def draw(
        self, logits: Logits, history: Sequence[int], allowed: torch.Tensor | None = None
    ) -> tuple[int, TokenLogprob | None]:
        """Chooses the next token.

        Args:
            logits: Of all tokens.
            history: Token ids of the prompt and the answer so far, for the repetition penalty.
            allowed: Among which tokens, bool of shape (vocabulary,); if not given, all. Log-probabilities are the
                model's own either way.

        Raises:
            GenerationError: The logits are not numbers.
        """
        if math.isnan(logits.highest):
            # Taking the maximum would give some token without a word, the same one for ever.
            raise _no_numbers()
        if self._params.greedy and not self._processors and allowed is None:
            return logits.best, self._logprob(logits.values, logits.best)
        scores = logits.values.float()[None]
        if allowed is not None:
            # What is allowed stays finite, and so apart from the rest, where the base gives minus infinity.
            scores = scores.clamp(-_FAR, _FAR).masked_fill_(~allowed.to(scores.device), -torch.inf)
        if self._processors:
            ids = torch.tensor([list(history)], device=scores.device)
            scores = self._processors(ids, scores)
        token = int(scores.argmax()) if self._params.greedy else self._drawn(scores.softmax(-1)[0])
        return token, self._logprob(logits.values, token)

    def _drawn(self, probabilities: torch.Tensor) -> int:
        if probabilities.device.type != "cpu":  # where a running sum is added up in no certain order
            return int(torch.multinomial(probabilities, 1, generator=self._random))
        sums = probabilities.cumsum(-1)
        if not math.isfinite(sums[-1]):
            raise _no_numbers()
        # The number is above 0 and at most the whole sum: a token of probability 0, which adds nothing, is never met.
        return int(torch.searchsorted(sums, (1 - torch.rand(1, generator=self._random)) * sums[-1]))

    def _logprob(self, logits: torch.Tensor, token: int) -> TokenLogprob | None:
        if self._params.logprobs is None:
            return None
        logprobs = logits.float().log_softmax(-1)
        top = logprobs.topk(self._params.logprobs)
        return TokenLogprob(
            token, float(logprobs[token]), dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        )


def _processors(params: SamplingParams) -> LogitsProcessorList:
    chain = LogitsProcessorList()
    if params.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.greedy:
        return chain
    # In vLLM's order; transformers applies min_p last.
    chain.append(TemperatureLogitsWarper(params.temperature))
    if params.min_p > 0:
        chain.append(MinPLogitsWarper(params.min_p))
    if params.top_k > 0:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(TopP(params.top_p))
    return chain


class TopP(LogitsProcessor):  # type: ignore[misc]
    """Keeps the fewest tokens whose probabilities reach a sum (Holtzman et al., https://arxiv.org/abs/1904.09751).

    Args:
        top_p: The sum, above 0 and below 1.
    """

    def __init__(self, top_p: float) -> None:
        self._top_p = top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores, shape (1, vocabulary), with minus infinity in place of those that are not kept."""
        probabilities = scores.softmax(-1)[0]
        best, tokens = probabilities.topk(min(_LIKELY, len(probabilities)))
        if best.sum() < self._top_p:
            best, tokens = probabilities.sort(descending=True)
        kept = tokens[best.cumsum(-1) - best < self._top_p]
        return torch.full_like(scores, -torch.inf).index_copy_(1, kept, scores[:, kept])


def _no_numbers() -> GenerationError:
    return GenerationError(
        "The base computed NaN in place of an answer.",
        hint="float16 overflows on bases trained in bfloat16; try another compute_dtype.",
    )
