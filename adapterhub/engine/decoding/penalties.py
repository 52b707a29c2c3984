"""What earlier tokens change about the logits of the next one, and what a request adds to them.

Tokens are counted as they come: a step costs what the answer's distinct tokens cost, not what its length does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

_FIRST_CAPACITY = 64


class TokenCounts:
    """Distinct tokens in the order of their first occurrence, with how often each occurred; it grows by doubling.

    Args:
        device: The device of the tensors.
        tokens: The first ones.
    """

    def __init__(self, device: torch.device, tokens: Iterable[int] = ()) -> None:
        counted: dict[int, int] = {}
        for token in tokens:
            counted[token] = counted.get(token, 0) + 1
        self._places = {token: place for place, token in enumerate(counted)}
        size = max(_FIRST_CAPACITY, len(counted))
        self._ids = torch.zeros(size, dtype=torch.long, device=device)
        self._counts = torch.zeros(size, device=device)
        self._ids[: len(counted)] = torch.tensor(list(counted), dtype=torch.long, device=device)
        self._counts[: len(counted)] = torch.tensor(
            list(counted.values()), dtype=torch.float32, device=device
        )

    def add(self, token: int) -> None:
        """Counts one token."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)])
            self._counts = torch.cat([self._counts, torch.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1

    @property
    def ids(self) -> torch.Tensor:
        """The tokens, shape (distinct tokens,)."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> torch.Tensor:
        """How often each occurred, float32 of the same shape."""
        return self._counts[: len(self._places)]


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

    def __init__(self, penalty: float, prompt: Iterable[int], device: torch.device) -> None:
        self._penalty, self._seen = penalty, TokenCounts(device, prompt)

    def add(self, token: int) -> None:
        """Notes a token of the answer."""
        self._seen.add(token)

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores of all tokens, shape (vocabulary,), with the penalty."""
        seen = scores[self._seen.ids]
        penalised = torch.where(seen < 0, seen * self._penalty, seen / self._penalty)
        return scores.index_copy(0, self._seen.ids, penalised)


class CountPenalty:
    """OpenAI's `frequency_penalty` and `presence_penalty`; as in vLLM the tokens of the answer alone count.

    Args:
        frequency: Subtracted from a token's logit for each time it has occurred.
        presence: Subtracted once from the logit of each token that has occurred.
        device: The device of the logits.
    """

    def __init__(self, frequency: float, presence: float, device: torch.device) -> None:
        self._frequency, self._presence, self._counts = frequency, presence, TokenCounts(device)

    def add(self, token: int) -> None:
        """Counts a token of the answer."""
        self._counts.add(token)

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores of all tokens, shape (vocabulary,), with the penalties."""
        penalty = self._frequency * self._counts.counts + self._presence
        return scores.index_add(0, self._counts.ids, penalty, alpha=-1)
