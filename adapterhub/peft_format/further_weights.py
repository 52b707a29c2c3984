"""What an adapter's file holds beside LoRA on linear layers: LoRA on embeddings, whole modules, embeddings of tokens.

Tensor names and rules are those of peft 0.21: `tuners/lora/layer.py` (`Embedding`), `utils/other.py`
(`ModulesToSaveWrapper`, `TrainableTokensWrapper`) and `tuners/trainable_tokens/layer.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError
from adapterhub.peft_format.config import (
    DTYPES,
    FurtherParameter,
    LoraSettings,
    further_tensors,
    saved_weights,
)
from adapterhub.peft_format.safetensors_header import TensorInfo


class EmbeddingShape(NamedTuple):
    """The shape of LoRA on an embedding."""

    rank: int
    embedding_dim: int
    num_embeddings: int


class TokenRows(NamedTuple):
    """The tokens whose rows of an embedding are replaced, and the width of a row."""

    token_ids: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class FurtherWeights:
    """The modules that an adapter changes by more than LoRA on linear layers, by their names in the adapter.

    Attributes:
        embeddings: Embedding -> the shape of LoRA on it.
        saved: Module that is replaced as a whole (`modules_to_save`) -> its parameters -> their shapes.
        tokens: Embedding or output layer -> the tokens whose rows are replaced (`trainable_token_indices`).
    """

    embeddings: Mapping[str, EmbeddingShape]
    saved: Mapping[str, Mapping[str, tuple[int, ...]]]
    tokens: Mapping[str, TokenRows]

    @classmethod
    def of(cls, settings: LoraSettings, header: Mapping[str, TensorInfo]) -> Self:
        """Reads them from the header of an adapter's file, and checks them against its settings.

        Raises:
            AdapterInvalidError: Config and weights contradict each other.
            AdapterIncompatibleError: It uses DoRA on an embedding.
        """
        found = further_tensors(header)
        embeddings = {name: parts for name, parts in found.items() if "trainable_tokens_delta" not in parts}
        if embeddings and settings.use_dora:
            raise AdapterIncompatibleError(
                f"The adapter uses DoRA on the embedding {next(iter(embeddings))!r}, whose scales depend on the rows "
                "of all tokens; they are not computed here.",
                hint="Train it with use_dora=False, or leave the embedding out of target_modules.",
            )
        saved: dict[str, dict[str, tuple[int, ...]]] = {}
        for parameter, tensor in saved_weights(header, settings).items():
            module, _, name = parameter.rpartition(".")
            saved.setdefault(module, {})[name] = header[tensor].shape
        return cls(
            {name: _embedding_shape(name, parts, settings) for name, parts in embeddings.items()},
            saved,
            {
                name: _token_rows(name, parts, settings)
                for name, parts in found.items()
                if name not in embeddings
            },
        )

    def __bool__(self) -> bool:
        return bool(self.embeddings or self.saved or self.tokens)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all of its modules."""
        return (*self.embeddings, *self.saved, *self.tokens)

    @property
    def elements(self) -> int:
        """The number of weights that a slot holds for it."""
        return sum(map(math.prod, self._matrices()))

    def _matrices(self) -> Iterator[tuple[int, ...]]:
        for rank, width, count in self.embeddings.values():
            yield rank, width + count
        for parameters in self.saved.values():
            yield from parameters.values()
        for token_ids, width in self.tokens.values():
            yield len(token_ids), width


def _embedding_shape(
    module: str, parts: Mapping[FurtherParameter, TensorInfo], settings: LoraSettings
) -> EmbeddingShape:
    _check_parts(module, parts, {"lora_embedding_A", "lora_embedding_B"})
    match parts["lora_embedding_A"].shape, parts["lora_embedding_B"].shape:
        case (rank, count), (width, columns) if rank == columns == settings.rank(module):
            return EmbeddingShape(rank, width, count)
        case a, b:
            raise contradiction(
                f"rank {settings.rank(module)} in {module!r} does not agree with shapes {a} and {b}"
            )


def _token_rows(
    module: str, parts: Mapping[FurtherParameter, TensorInfo], settings: LoraSettings
) -> TokenRows:
    _check_parts(module, parts, {"trainable_tokens_delta"})
    token_ids, shape = settings.trained_tokens(module), parts["trainable_tokens_delta"].shape
    if len(shape) != 2 or len(token_ids) != shape[0]:
        raise contradiction(
            f"trainable_token_indices names {len(token_ids)} tokens of {module!r}, whose rows have shape {shape}"
        )
    if len(set(token_ids)) < len(token_ids):
        raise contradiction(f"trainable_token_indices names a token of {module!r} twice")
    return TokenRows(token_ids, shape[1])


def _check_parts(
    module: str, parts: Mapping[FurtherParameter, TensorInfo], expected: set[FurtherParameter]
) -> None:
    if parts.keys() != expected:
        raise contradiction(f"module {module!r} has {sorted(parts)}, not {sorted(expected)}")
    for part, tensor in parts.items():
        if tensor.dtype not in DTYPES or 0 in tensor.shape:
            raise contradiction(f"{part} of {module!r} is {tensor.dtype} of shape {tensor.shape}")


def contradiction(reason: str) -> AdapterInvalidError:
    """An error that says how an adapter's config and weights contradict each other."""
    return AdapterInvalidError(
        f"The adapter's config and weights contradict each other: {reason}.",
        hint="Take both files from the same training run.",
    )
