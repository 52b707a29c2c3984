"""Log-probabilities of a prompt's tokens, taken from the logits of its prefill piece by piece."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapterhub.engine.decoding.sampler import nan_error
from adapterhub.engine.interface import PromptLogprobs, TokenLogprob

_ROWS = 32
"""How many rows are looked at together: each takes a few times the width of the vocabulary."""


class PromptScorer:
    """Collects the log-probabilities of one prompt. The thread that steps uses it.

    Args:
        prompt: Token ids.
        top: How many of the most probable tokens to note at each position.
    """

    def __init__(self, prompt: Sequence[int], top: int) -> None:
        self._prompt, self._top = prompt, top
        self._scored: list[TokenLogprob | None] = [None]

    @property
    def num_scored(self) -> int:
        """Number of tokens of the prompt that have theirs, with the first one."""
        return len(self._scored)

    @property
    def logprobs(self) -> PromptLogprobs:
        """What has been found."""
        return tuple(self._scored)

    def add(self, logits: torch.Tensor) -> None:
        """Notes the next tokens.

        Args:
            logits: Those of the tokens before them, shape (tokens, vocabulary).

        Raises:
            GenerationError: They are not numbers.
        """
        for rows in torch.split(logits, _ROWS):
            self._scored += self._score(rows)

    def _score(self, logits: torch.Tensor) -> list[TokenLogprob]:
        start = self.num_scored
        token_ids = self._prompt[start : start + len(logits)]
        logprobs = logits.float().log_softmax(-1)
        own = logprobs.gather(1, torch.tensor(token_ids, dtype=torch.long, device=logits.device)[:, None])
        if own.isnan().any():
            raise nan_error()
        ranks = (logprobs >= own).sum(-1)
        top = logprobs.topk(min(self._top, logprobs.shape[-1]))
        columns = (own[:, 0], top.indices, top.values, ranks)
        return [
            TokenLogprob(token_id, logprob, dict(zip(ids, values, strict=True)), rank)
            for token_id, logprob, ids, values, rank in zip(
                token_ids, *(column.tolist() for column in columns), strict=True
            )
        ]
