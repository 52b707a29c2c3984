"""The base's token embeddings as an encoder for the router: no further weights, no forward pass.

A text's vector is the mean of its tokens' embeddings with smooth inverse frequency weights, a / (a + p) (Arora, Liang
and Ma 2017, "A simple but tough-to-beat baseline for sentence embeddings"). BPE merges are ordered by frequency, so the
frequency p of a token is estimated from its id by Zipf's law.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from adapterhub.routing.classifier.arrays import FloatArray

if TYPE_CHECKING:
    from adapterhub.base.loading import Base

SIF_A = 1e-3
"""The constant a of smooth inverse frequency."""


class TokenEmbeddings:
    """An encoder for `AdapterRouter.fit`.

    Args:
        table: One vector per token (vocabulary, dimensions).
        tokenize: Text to token ids, without special tokens.
        weighted: Weight tokens by smooth inverse frequency; plain mean otherwise.
    """

    def __init__(
        self, table: FloatArray, tokenize: Callable[[str], Sequence[int]], *, weighted: bool = True
    ) -> None:
        self._table = table
        self._tokenize = tokenize
        ranks = np.arange(1, len(table) + 1)
        frequencies = 1 / (ranks * np.log(len(table) + 1))
        self._weights = SIF_A / (SIF_A + frequencies) if weighted else np.ones(len(table))

    @classmethod
    def of_base(cls, base: Base, dimensions: int = 128, *, weighted: bool = True) -> Self:
        """The encoder of a loaded base.

        Args:
            base: The base; a compressed copy of its embedding is stored.
            dimensions: The number of principal components, stored as float16.
            weighted: As for the constructor.
        """
        table = base.model.get_input_embeddings().weight.detach().float().cpu().numpy()
        tokenizer = base.tokenizer
        return cls(
            principal_components(table, dimensions),
            lambda text: tokenizer.encode(text, add_special_tokens=False),
            weighted=weighted,
        )

    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of texts (n, dimensions); zeros for one without tokens."""
        return np.stack([self._vector(self._tokenize(text)) for text in texts])

    def _vector(self, tokens: Sequence[int]) -> FloatArray:
        if not len(tokens):
            return np.zeros(self._table.shape[1], np.float32)
        ids = np.asarray(tokens)
        return np.asarray(self._weights[ids] @ self._table[ids], np.float32)


def principal_components(table: FloatArray, dimensions: int) -> FloatArray:
    """The first principal components of centred vectors (n, dimensions), float16."""
    centred = table - table.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred @ directions[:, ::-1][:, :dimensions], np.float16)
