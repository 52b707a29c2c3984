"""What one adapter changes about a module in other ways than by LoRA on a linear layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from accelerate.utils.modeling import align_module_device
from torch import nn

from adapterhub.base.quantized_weights import dequantize_module_weight
from adapterhub.errors import AdapterIncompatibleError
from adapterhub.lora.delta import LoraDelta


class EmbeddingDelta(LoraDelta):
    """LoRA on an embedding: the transpose of its weight changes by `b @ a`.

    So `a` is PEFT's `lora_embedding_A`, shape (r, num_embeddings), and `b` is `lora_embedding_B` times the scaling,
    shape (embedding_dim, r). There is no DoRA.
    """


@dataclass(frozen=True)
class SavedModuleDelta:
    """A module that is replaced as a whole, PEFT's `modules_to_save`.

    Attributes:
        parameters: The module's own parameters by their names, in their shapes, unquantised.
    """

    parameters: Mapping[str, torch.Tensor]

    @property
    def bytes(self) -> int:
        """Memory of its tensors."""
        return sum(tensor.nbytes for tensor in self.parameters.values())

    @property
    def rank(self) -> int:
        """It has no factors."""
        return 0

    def to(self, dtype: torch.dtype) -> Self:
        """The same change in another dtype."""
        return type(self)({name: tensor.to(dtype) for name, tensor in self.parameters.items()})

    @classmethod
    def weighted_sum(cls, changes: Sequence[tuple[Self, float]], base: nn.Module | None) -> Self:
        """The base's parameters plus the weighted differences from them.

        Args:
            changes: Changes with their weights.
            base: The base's module.

        Raises:
            AdapterIncompatibleError: The base is not there.
        """
        if len(changes) == 1 and changes[0][1] == 1:
            return changes[0][0]
        names = changes[0][0].parameters
        own = {name: base_parameter(base, name) for name in names}
        return cls(
            {
                name: own[name] + sum(weight * (one.parameters[name] - own[name]) for one, weight in changes)
                for name in names
            }
        )


@dataclass(frozen=True)
class TokenRowsDelta:
    """Rows of an embedding or an output layer that are replaced, PEFT's `trainable_token_indices`.

    Attributes:
        token_ids: The rows' numbers, rising, shape (tokens,).
        rows: Their new values, shape (tokens, width).
    """

    token_ids: torch.Tensor
    rows: torch.Tensor

    @property
    def bytes(self) -> int:
        """Memory of its tensors."""
        return self.token_ids.nbytes + self.rows.nbytes

    @property
    def rank(self) -> int:
        """It has no factors."""
        return 0

    def to(self, dtype: torch.dtype) -> Self:
        """The same change in another dtype."""
        return type(self)(self.token_ids, self.rows.to(dtype))

    @classmethod
    def weighted_sum(cls, changes: Sequence[tuple[Self, float]], base: nn.Module | None) -> Self:
        """The base's rows plus the weighted differences from them; rows that only some replace, too.

        Args:
            changes: Changes with their weights.
            base: The base's module.

        Raises:
            AdapterIncompatibleError: The base is not there.
        """
        if len(changes) == 1 and changes[0][1] == 1:
            return changes[0][0]
        token_ids = torch.unique(torch.cat([one.token_ids for one, _ in changes]))
        own = base_parameter(base, "weight")[token_ids]
        total = own.clone()
        for one, weight in changes:
            at = torch.searchsorted(token_ids, one.token_ids)
            total[at] += weight * (one.rows - own[at])
        return cls(token_ids, total)


def base_parameter(module: nn.Module | None, name: str) -> torch.Tensor:
    """A parameter of the base's module, in float32 in host memory, dequantised if need be.

    Raises:
        AdapterIncompatibleError: The base is not there.
    """
    if module is None:
        raise AdapterIncompatibleError(
            "An adapter that replaces weights of the base can only be blended with the base's own at hand.",
            hint="Blend it on engine='transformers'.",
        )
    with align_module_device(module):  # accelerate may have left its weights on disk
        parameter: torch.Tensor = module.get_parameter(name)
        if not parameter.is_floating_point():
            parameter = dequantize_module_weight(module)
        return parameter.detach().float().cpu()
