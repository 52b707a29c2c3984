"""Which token of a step has which adapter, and how the step's sums are best computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch

TOGETHER_FROM = 2
"""With fewer adapters than this, one product for each is at least as fast as a batched one."""
FEW_TOKENS = 8
"""With more tokens than this for each adapter, a product's own work outweighs the cost of starting it."""
LARGEST_WASTE = 3
"""A batched product may read and compute this many times what the tokens need: slots between, rows of padding."""


class LoraMapping:
    """The adapters of the tokens of one forward pass.

    Tokens are in runs of the same adapter, one after the other and at most one for each slot; those of the bare base
    come before them. What layers share within the step is kept here, so that nothing outlives it.

    Args:
        runs: (slot, number of tokens) of each run, by rising slot.
        base: Number of tokens before them that have no adapter.
        device: Where the tokens are.
        together: Force one way or the other; for benchmarks and tests.
    """

    def __init__(
        self,
        runs: Sequence[tuple[int, int]],
        *,
        base: int = 0,
        device: torch.device | None = None,
        together: bool | None = None,
    ) -> None:
        self.slots = frozenset(slot for slot, _ in runs)
        self.low, self.high = min(self.slots, default=0), max(self.slots, default=-1) + 1
        self.first, self.last = base, base + sum(count for _, count in runs)
        self.runs: list[tuple[int, int, int]] = []  # slot, start and stop within the adapted tokens
        for slot, count in runs:
            start = self.runs[-1][2] if self.runs else 0
            self.runs.append((slot, start, start + count))
        self._width = max((count for _, count in runs), default=0)
        self._device = device
        tokens, spread = self.last - self.first, (self.high - self.low) * self._width
        self.even = spread == tokens
        self.together = self._is_better_together(tokens, spread) if together is None else together
        self._last: tuple[object, torch.Tensor, Sequence[torch.Tensor]] | None = None

    def remember(
        self,
        owner: object,
        x: torch.Tensor,
        compute: Callable[[torch.Tensor, LoraMapping], Sequence[torch.Tensor]],
    ) -> Sequence[torch.Tensor]:
        """`compute(x, self)`, computed once for an owner that asks several times in a row with the same tensor.

        No more is kept: an input for each layer would fill memory in a long prompt, and stand in the way of large
        blocks that come and go, which malloc would then have from the system anew each time.
        """
        if self._last is None or self._last[0] is not owner or self._last[1] is not x:
            self._last = owner, x, compute(x, self)
        return self._last[2]

    def own(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of all tokens (tokens, features) those that have an adapter."""
        return tokens if self.last - self.first == len(tokens) else tokens[self.first : self.last]

    def spread(self, own: torch.Tensor) -> torch.Tensor:
        """The adapted tokens (tokens, features) as (slots, most tokens of one, features), padded with any token."""
        if not self.even:
            own = own.index_select(0, self._places[0])
        return own.view(self.high - self.low, self._width, -1)

    def collect(self, spread: torch.Tensor) -> torch.Tensor:
        """The inverse of `spread`: (tokens, features)."""
        return spread.flatten(0, 1).index_select(0, self._places[1])

    @cached_property
    def slot_of_token(self) -> torch.Tensor:
        """The slot of each adapted token, shape (tokens,)."""
        slots = [slot for slot, start, stop in self.runs for _ in range(start, stop)]
        return torch.tensor(slots, device=self._device)

    @cached_property
    def _places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For each place of the spread form its token, and for each token its place."""
        places = [
            (slot - self.low) * self._width + offset
            for slot, start, stop in self.runs
            for offset in range(stop - start)
        ]
        tokens = [0] * ((self.high - self.low) * self._width)
        for token, place in enumerate(places):
            tokens[place] = token
        return torch.tensor(tokens, device=self._device), torch.tensor(places, device=self._device)

    def _is_better_together(self, tokens: int, spread: int) -> bool:
        return (
            len(self.runs) >= TOGETHER_FROM
            and self._width <= FEW_TOKENS
            and spread <= LARGEST_WASTE * tokens
            and self.high - self.low <= LARGEST_WASTE * len(self.runs)
        )
