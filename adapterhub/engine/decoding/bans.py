"""Which tokens may not come next: suppressed ones, an end that is too early, the last token of a bad word."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence

from adapterhub.engine.sampling_params import SamplingParams


class BannedSequences:
    """Sequences of tokens whose last one is banned after the others.

    Args:
        sequences: None of them empty.
        history: Tokens before the first that is added.
    """

    def __init__(self, sequences: Iterable[Sequence[int]], history: Iterable[int] = ()) -> None:
        self._after: dict[tuple[int, ...], list[int]] = {}
        for *before, last in sequences:
            self._after.setdefault(tuple(before), []).append(last)
        self._lengths = sorted({len(before) for before in self._after})
        self._tail: deque[int] = deque(history, maxlen=max(self._lengths, default=0))

    def add(self, token: int) -> None:
        """Notes a token of the answer."""
        self._tail.append(token)

    def banned(self) -> Iterator[int]:
        """The tokens that would end one of the sequences now."""
        tail = tuple(self._tail)
        for length in self._lengths:
            if length <= len(tail):
                yield from self._after.get(tail[len(tail) - length :], ())


class Bans:
    """The tokens that may not come next in one answer.

    Args:
        params: The request's sampling parameters.
        prompt: Token ids of the prompt, where `bad_words_ids` may begin, as in transformers.
        end_token_ids: Tokens that end the answer, which `min_tokens` bans at first.
        bad_words: The token ids of `bad_words`, which begin in the answer, as in vLLM.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        end_token_ids: Collection[int],
        bad_words: Sequence[Sequence[int]],
    ) -> None:
        self._always = params.suppress_tokens
        self._sequences = [BannedSequences(bad_words), BannedSequences(params.bad_words_ids, prompt)]
        self._ends, self._ends_banned_for = end_token_ids, params.min_tokens if end_token_ids else 0

    def add(self, token: int) -> None:
        """Notes a token of the answer."""
        self._ends_banned_for -= 1
        for sequences in self._sequences:
            sequences.add(token)

    def banned(self) -> list[int]:
        """Token ids, in no order."""
        banned = [*self._always]
        if self._ends_banned_for > 0:
            banned += self._ends
        for sequences in self._sequences:
            banned += sequences.banned()
        return banned
