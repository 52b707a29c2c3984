"""Samples one token from a row of logits, with transformers' own logits processors where they are fast.

Two steps are our own, since each row of each step pays for them (`benchmarks/sampling.py` compares). For `top_p`
transformers sorts the whole vocabulary, and `torch.multinomial` draws a random number for each of its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from adapterhub.engine.decoding.bans import Bans
from adapterhub.engine.decoding.penalties import CountPenalty, LogitBias, RepetitionPenalty
from adapterhub.engine.interface import TokenLogprob
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import GenerationError

# Above every real logit, and still finite in float32 after the highest repetition penalty and lowest temperature.
_MAX_ABS_LOGIT = 1e30
_TOP_P_TOP_K = 1024
"""`top_p` looks among this many most probable tokens before it sorts the whole vocabulary."""


@dataclass(frozen=True)
class Logits:
    """The logits of one answer's next token, with their maximum.

    Attributes:
        values: Shape (vocabulary,).
        argmax: The token with the highest value.
        maximum: That value; NaN if any value is.
    """

    values: torch.Tensor
    argmax: int
    maximum: float

    @classmethod
    def of(cls, rows: torch.Tensor) -> list[Logits]:
        """The logits of several answers, shape (answers, vocabulary); their maxima are taken in one pass."""
        return StepLogits(rows).get()


class StepLogits:
    """The logits of a step, which a GPU may still be computing.

    Args:
        rows: The logits of several answers, shape (answers, vocabulary).

    Attributes:
        argmax: The token of each with the highest value, on the device of the logits.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows
        maximum, self.argmax = _maxima(rows)
        # Into pinned memory, which the host may read behind the event.
        self._maxima = [one.to("cpu", non_blocking=True) for one in (self.argmax, maximum)]
        self._copied = (
            None if rows.device.type == "cpu" else torch.cuda.current_stream(rows.device).record_event()
        )

    def get(self) -> list[Logits]:
        """The logits of each answer, once they have been computed."""
        if self._copied is not None:
            self._copied.synchronize()
        argmax, maximum = (one.tolist() for one in self._maxima)
        return [Logits(*row) for row in zip(self._rows, argmax, maximum, strict=True)]


class Sampler:
    """Samples the tokens of one answer.

    Args:
        params: The request's sampling parameters.
        index: Which of the request's `n` answers this is; each has its own random generator.
        device: The device of the logits.
        prompt: Token ids of the prompt.
        end_token_ids: Tokens that end the answer.
        bad_words: The token ids of `params.bad_words`, each in one or two ways.
    """

    def __init__(
        self,
        params: SamplingParams,
        index: int,
        device: torch.device,
        *,
        prompt: Sequence[int] = (),
        end_token_ids: Collection[int] = (),
        bad_words: Sequence[Sequence[int]] = (),
    ) -> None:
        self._params = params
        self._bans = Bans(params, prompt, end_token_ids, bad_words) if _has_bans(params) else None
        self._penalties, self._warpers = _penalties(params, prompt, device), _warpers(params)
        self._generator = torch.Generator(device)
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed((params.seed + index) % 2**63)

    @property
    def takes_argmax(self) -> bool:
        """Whether the token with the highest logit is taken, and nothing else is asked about the logits."""
        changed = self._bans or self._penalties
        return self._params.greedy and self._params.logprobs is None and not changed

    def accept(self, token: int) -> None:
        """Notes the answer's next token, which penalties and bad words of later ones depend on."""
        if self._bans:
            self._bans.add(token)
        for penalty in self._penalties:
            penalty.add(token)

    def draw(self, logits: Logits, allowed: torch.Tensor | None = None) -> tuple[int, TokenLogprob | None]:
        """Samples the next token.

        Args:
            logits: The logits of all tokens.
            allowed: Mask of the tokens to sample from, bool of shape (vocabulary,); None allows all. Log-probabilities
                are the model's own either way.

        Returns:
            The token id, and its log-probability if the request asks for log-probabilities.

        Raises:
            GenerationError: The logits are not numbers.
        """
        if math.isnan(logits.maximum):
            # argmax would return the same token for ever, without an error.
            raise nan_error()
        banned = self._bans.banned() if self._bans else ()
        if self._params.greedy and not banned and not self._penalties and allowed is None:
            return logits.argmax, self._logprob(logits.values, logits.argmax)
        scores = logits.values.float()
        if allowed is not None:
            # Allowed tokens stay finite, so they differ from the masked ones even where the base gives -inf.
            scores = scores.clamp(-_MAX_ABS_LOGIT, _MAX_ABS_LOGIT).masked_fill_(
                ~allowed.to(scores.device), -torch.inf
            )
        if banned:
            scores = _without(banned, scores)
        for penalty in self._penalties:
            scores = penalty(scores)
        if self._params.greedy:
            token = int(scores.argmax())
        else:
            token = self._sample(self._warpers(None, scores[None]).softmax(-1)[0])
        return token, self._logprob(logits.values, token)

    def _sample(self, probabilities: torch.Tensor) -> int:
        if probabilities.device.type != "cpu":  # a cumulative sum is not deterministic there
            return int(torch.multinomial(probabilities, 1, generator=self._generator))
        cumulative = probabilities.cumsum(-1)
        if not math.isfinite(cumulative[-1]):
            raise nan_error()
        # Inverse transform sampling. The number is above 0, so a token of probability 0 is never sampled.
        threshold = (1 - torch.rand(1, generator=self._generator)) * cumulative[-1]
        return int(torch.searchsorted(cumulative, threshold))

    def _logprob(self, logits: torch.Tensor, token: int) -> TokenLogprob | None:
        if self._params.logprobs is None:
            return None
        logprobs = logits.float().log_softmax(-1)
        top = logprobs.topk(min(self._params.logprobs, len(logprobs)))
        return TokenLogprob(
            token, float(logprobs[token]), dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        )


def _maxima(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The maximum of each row, NaN if any value is, and its index."""
    if rows.device.type != "cpu":
        maximum, argmax = rows.max(-1)
        return maximum, argmax
    # numpy's is vectorised, and ten times as fast as torch's.
    values = rows.float().numpy()
    places = values.argmax(-1) if len(values) else np.zeros(0, np.int64)
    return torch.from_numpy(values[np.arange(len(values)), places]), torch.from_numpy(places)


def _has_bans(params: SamplingParams) -> bool:
    return bool(params.suppress_tokens or params.bad_words_ids or params.bad_words or params.min_tokens)


def _without(banned: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
    without = scores.index_fill(0, torch.tensor(banned, device=scores.device), -torch.inf)
    # A grammar may leave banned tokens only.
    return without if without.isfinite().any() else scores


def _penalties(
    params: SamplingParams, prompt: Sequence[int], device: torch.device
) -> list[LogitBias | RepetitionPenalty | CountPenalty]:
    chain: list[LogitBias | RepetitionPenalty | CountPenalty] = []  # in vLLM's order
    if params.logit_bias:
        chain.append(LogitBias(params.logit_bias, device))
    if params.repetition_penalty != 1:
        chain.append(RepetitionPenalty(params.repetition_penalty, prompt, device))
    if params.frequency_penalty or params.presence_penalty:
        chain.append(CountPenalty(params.frequency_penalty, params.presence_penalty, device))
    return chain


def _warpers(params: SamplingParams) -> LogitsProcessorList:
    chain = LogitsProcessorList()
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
    """Nucleus sampling: keeps the fewest tokens whose probabilities reach a sum (arXiv 1904.09751).

    Args:
        top_p: The sum, above 0 and below 1.
    """

    def __init__(self, top_p: float) -> None:
        self._top_p = top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores, shape (1, vocabulary), with minus infinity for the tokens outside the nucleus."""
        probabilities = scores.softmax(-1)[0]
        top, tokens = probabilities.topk(min(_TOP_P_TOP_K, len(probabilities)))
        if top.sum() < self._top_p:
            top, tokens = probabilities.sort(descending=True)
        below = top.cumsum(-1) - top < self._top_p
        below[0] = True  # the most probable one, also where `top_p` is 0 in float32
        kept = tokens[below]
        return torch.full_like(scores, -torch.inf).index_copy_(1, kept, scores[:, kept])


def nan_error() -> GenerationError:
    """The error of logits that are not numbers."""
    return GenerationError(
        "The base computed NaN logits.",
        hint="float16 overflows on bases trained in bfloat16; try another compute_dtype.",
    )
