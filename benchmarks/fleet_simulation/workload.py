"""Which requests arrive when, and how long they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BURST_PERIOD_SECONDS = 10.0
BURST_SHARE = 0.1
"""A burst takes this share of each period."""


@dataclass(frozen=True)
class Workload:
    """What is asked of a fleet.

    Attributes:
        adapters: How many there are.
        rate: Requests a second, on average.
        requests: How many of them.
        zipf: Exponent of the adapters' popularity: the k-th is asked for in proportion to `k ** -zipf`; 0 is evenly.
        prompt_tokens: Of each prompt.
        output_tokens: Mean of the answers' lengths.
        fixed_output: Whether all answers have that length; otherwise lengths are geometrically distributed.
        burst: How many times as fast requests arrive in bursts, at the same mean rate; 1 is a Poisson process.
    """

    adapters: int
    rate: float
    requests: int
    zipf: float = 1.0
    prompt_tokens: int = 64
    output_tokens: int = 32
    fixed_output: bool = False
    burst: float = 1.0

    @property
    def popularity(self) -> NDArray[np.float64]:
        """The share of the requests of each adapter, the most popular first."""
        weights = np.arange(1, self.adapters + 1, dtype=float) ** -self.zipf
        return weights / weights.sum()


@dataclass(frozen=True)
class Trace:
    """Requests in order of their arrival.

    Attributes:
        at: Seconds of each arrival.
        adapter: The adapter of each, 0 is the most popular.
        output_tokens: Tokens of each answer, at least 1.
        prompt_tokens: Tokens of every prompt.
        names: The adapters' names.
    """

    at: list[float]
    adapter: list[int]
    output_tokens: list[int]
    prompt_tokens: int
    names: list[str]

    def __len__(self) -> int:
        return len(self.at)


def draw(workload: Workload, seed: int) -> Trace:
    """The requests of a workload; the same for the same seed."""
    chance, count = np.random.default_rng(seed), workload.requests
    arrivals = _arrivals(chance.exponential(1.0, count).cumsum(), workload)
    adapter = np.searchsorted(workload.popularity.cumsum(), chance.random(count))
    lengths = (
        np.full(count, workload.output_tokens)
        if workload.fixed_output
        else chance.geometric(1 / workload.output_tokens, count)
    )
    return Trace(
        arrivals.tolist(),
        np.minimum(adapter, workload.adapters - 1).tolist(),  # the shares' sum may round below 1
        lengths.tolist(),
        workload.prompt_tokens,
        [f"adapter-{number}" for number in range(workload.adapters)],
    )


def _arrivals(expected: NDArray[np.float64], workload: Workload) -> NDArray[np.float64]:
    """Seconds at which so many requests were expected: the inverse of the rate's integral."""
    usual = workload.rate / (1 - BURST_SHARE + BURST_SHARE * workload.burst)
    in_burst = BURST_PERIOD_SECONDS * BURST_SHARE * usual * workload.burst
    in_period = BURST_PERIOD_SECONDS * workload.rate
    periods, rest = np.divmod(expected, in_period)
    ends, seconds = (
        [0, in_burst, in_period],
        [0, BURST_PERIOD_SECONDS * BURST_SHARE, BURST_PERIOD_SECONDS],
    )
    return periods * BURST_PERIOD_SECONDS + np.interp(rest, ends, seconds)
