"""Drawing one token from a row of logits, with transformers' own logits processors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from adapterhub.engine.interface import TokenLogprob
from adapterhub.errors import GenerationError
from adapterhub.sampling import SamplingParams

# Beyond every logit, and finite in float32 after the repetition penalty and the lowest temperature.
_FAR = 1e30


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
            raise GenerationError(
                "The base computed NaN in place of an answer.",
                hint="float16 overflows on bases trained in bfloat16; try another compute_dtype.",
            )
        if self._params.greedy and not self._processors and allowed is None:
            return logits.best, self._logprob(logits.values, logits.best)
        scores = logits.values.float()[None]
        if allowed is not None:
            # What is allowed stays finite, and so apart from the rest, where the base gives minus infinity.
            scores = scores.clamp(-_FAR, _FAR).masked_fill(~allowed.to(scores.device), -torch.inf)
        if self._processors:
            ids = torch.tensor([list(history)], device=scores.device)
            scores = self._processors(ids, scores)
        if self._params.greedy:
            token = int(scores.argmax())
        else:
            token = int(torch.multinomial(scores.softmax(-1), 1, generator=self._random))
        return token, self._logprob(logits.values, token)

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
        chain.append(TopPLogitsWarper(params.top_p))
    return chain
