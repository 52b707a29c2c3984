"""A look at one training example: its text, and which parts are learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from adapterhub.training.tokenizing import IGNORE_INDEX, TokenizedExample


@dataclass(frozen=True)
class MaskedExample:
    """One example as a run sees it.

    Attributes:
        parts: Its text in parts, each with whether it is learned.
        tokens: Number of tokens.
        learned: Number of those that are learned.
    """

    parts: tuple[tuple[str, bool], ...]
    tokens: int
    learned: int

    @classmethod
    def of(cls, example: TokenizedExample, tokenizer: Any) -> MaskedExample:
        """The example in text.

        Args:
            example: From `tokenize`.
            tokenizer: The base's tokenizer.
        """
        tokens = list(_tokens(example))
        parts = [
            (tokenizer.decode([token for token, _ in group]), learned)
            for learned, group in groupby(tokens, key=lambda pair: pair[1])
        ]
        return cls(tuple(parts), len(example.input_ids), sum(learned for _, learned in tokens))


def _tokens(example: TokenizedExample) -> Iterator[tuple[int, bool]]:
    """Each token with whether it is learned; an end that the text does not have is a token of its own."""
    for index, (token, label) in enumerate(zip(example.input_ids, example.labels, strict=True)):
        learned = label != IGNORE_INDEX and index > 0  # nothing predicts the first
        if learned and label != token:
            yield label, True
        yield token, learned and label == token
