"""What earlier tokens change about the logits of the next one, and what a request adds to them.

Tokens are noted as they come: a step costs what the distinct tokens cost, not what reading all of them again would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

_FIRST_CAPACITY = 64


class LogitBias:
    """Adds to the logits of some tokens, as OpenAI's `logit_bias`.

    Args:
        bias: Token id -> what is added.
        device: The device of the logits.
    """

    def __init__(self, bias: Mapping[int, float], device: torch.device) -> None:
        self._ids = torch.tensor(list(bias), dtype=torch.long, device=device)
        self._values = torch.tensor(list(bias.values()), dtype=torch.float32, device=device)

    def add(self, token: int) -> None:
        """Nothing: earlier tokens change nothing."""

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores of all tokens, shape (vocabulary,), with the bias."""
        return scores.index_add(0, self._ids, self._values)


class RepetitionPenalty:
    """Makes tokens of prompt and answer less probable: divides logits above 0, multiplies others (arXiv 1909.05858).

    Args:
        penalty: The factor.
        prompt: Token ids of the prompt.
        device: The device of the logits.
    """

    def __init__(self, penalty: float, prompt: Sequence[int], device: torch.device) -> None:
        self._penalty, self._device = penalty, device
        self._prompt: Sequence[int] | None = prompt
        self._new: list[int] = []
        self._ids = torch.empty(0, dtype=torch.long, device=device)

    def add(self, token: int) -> None:
        """Notes a token of the answer."""
        self._new.append(token)

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores of all tokens, shape (vocabulary,), with the penalty."""
        ids = self._seen()
        seen = scores[ids]
        penalised = torch.where(seen < 0, seen * self._penalty, seen / self._penalty)
        return scores.index_copy(0, ids, penalised)  # an id that is there twice gets the same value twice

    def _seen(self) -> torch.Tensor:
        if self._prompt is not None:  # a long one takes a while, so not where a request is queued
            self._new = [*dict.fromkeys(self._prompt), *self._new]
            self._prompt = None
        if self._new:
            new = torch.tensor(self._new, device=self._device)
            self._ids, self._new = torch.cat([self._ids, new]), []
        return self._ids


class CountPenalty:
    """OpenAI's `frequency_penalty` and `presence_penalty`; as in vLLM the tokens of the answer alone count.

    Args:
        frequency: Subtracted from a token's logit for each time it has occurred.
        presence: Subtracted once from the logit of each token that has occurred.
        device: The device of the logits.
    """

    def __init__(self, frequency: float, presence: float, device: torch.device) -> None:
        self._frequency, self._presence = frequency, presence
        self._places: dict[int, int] = {}  # of each distinct token in the tensors, which grow by doubling
        self._ids = torch.zeros(_FIRST_CAPACITY, dtype=torch.long, device=device)
        self._counts = torch.zeros(_FIRST_CAPACITY, device=device)

    def add(self, token: int) -> None:
        """Counts a token of the answer."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)])
            self._counts = torch.cat([self._counts, torch.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores of all tokens, shape (vocabulary,), with the penalties."""
        used = len(self._places)
        penalty = self._frequency * self._counts[:used] + self._presence
        return scores.index_add(0, self._ids[:used], penalty, alpha=-1)
