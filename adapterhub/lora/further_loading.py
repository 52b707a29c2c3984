"""Loads what an adapter's folder holds beside LoRA on linear layers, as `ModuleDelta`s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from adapterhub.base.further_fit import check_further_fit, tied_heads
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.errors import AdapterIncompatibleError
from adapterhub.lora.delta import ModuleDelta
from adapterhub.lora.file_tensors import read_tensors
from adapterhub.lora.module_deltas import EmbeddingDelta, SavedModuleDelta, TokenRowsDelta
from adapterhub.peft_format.config import (
    WEIGHTS_FILE,
    FurtherParameter,
    LoraSettings,
    further_names,
    saved_weights,
)
from adapterhub.peft_format.further_weights import FurtherWeights
from adapterhub.peft_format.safetensors_header import TensorInfo


@dataclass(frozen=True)
class FurtherReader:
    """Reads an adapter's embeddings, whole modules and rows of tokens.

    Attributes:
        folder: The adapter's folder.
        header: The header of its weights' file.
        settings: Its settings.
    """

    folder: Path
    header: Mapping[str, TensorInfo]
    settings: LoraSettings

    def read(
        self, layers: LinearLayers, adapted: Mapping[str, str], dtype: torch.dtype
    ) -> dict[str, ModuleDelta]:
        """Reads all of them for a base.

        Args:
            layers: The base's layers.
            adapted: The linear layers that the adapter changes, from `check_fit`.
            dtype: The dtype of the result.

        Returns:
            Module name in the model -> change.

        Raises:
            AdapterInvalidError: The file is damaged.
            AdapterIncompatibleError: It does not fit the base.
        """
        if not self.weights:
            return {}
        names = check_further_fit(self.weights, layers, adapted)
        read = self._tensors(dtype)
        deltas: dict[str, ModuleDelta] = {}
        for module in self.weights.embeddings:
            deltas[names[module]] = self._embedding(module, read)
        for module, parameters in self.weights.saved.items():
            tensors = {name: read[self._saved[f"{module}.{name}"]] for name in parameters}
            deltas[names[module]] = SavedModuleDelta(tensors)
        heads = tied_heads(self.weights, layers, names)
        for module in self.weights.tokens:
            rows = self._rows(module, read)
            deltas |= {name: rows for name in (names[module], heads.get(module)) if name}
        return deltas

    def read_embeddings(
        self, layers: LinearLayers | None, adapted: Mapping[str, str]
    ) -> dict[str, EmbeddingDelta]:
        """Reads LoRA on embeddings without a loaded base, in float32.

        Args:
            layers: The base's layers, if they are known.
            adapted: As in `read`.

        Returns:
            Module name -> change; the names are the model's if `layers` are given, else the adapter's.

        Raises:
            AdapterInvalidError: The file is damaged.
            AdapterIncompatibleError: It does not fit the base, or the adapter also replaces weights of the base, whose
                difference from the base's only the base tells.
        """
        if self.weights.saved or self.weights.tokens:
            module = next(iter((*self.weights.saved, *self.weights.tokens)))
            raise AdapterIncompatibleError(
                f"The adapter replaces weights of {module!r} (modules_to_save, trainable_token_indices), which is no "
                "change that can be stored without its base.",
                hint="Ask for a blend in the request, adapter='name:0.7+other:0.3', or merge it into the base.",
            )
        if not self.weights:
            return {}
        names = check_further_fit(self.weights, layers, adapted) if layers else {}
        read = self._tensors(torch.float32)
        return {
            names.get(module, module): self._embedding(module, read) for module in self.weights.embeddings
        }

    @cached_property
    def weights(self) -> FurtherWeights:
        """What there is to read."""
        return FurtherWeights.of(self.settings, self.header)

    @cached_property
    def _saved(self) -> Mapping[str, str]:
        return saved_weights(self.header, self.settings)

    @cached_property
    def _names(self) -> Mapping[tuple[str, FurtherParameter], str]:
        return {key: name for name, key in further_names(self.header).items()}

    def _tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        wanted = {*self._saved.values(), *self._names.values()}
        header = {name: info for name, info in self.header.items() if name in wanted}
        return {
            name: tensor.to(dtype, copy=True)
            for name, tensor in read_tensors(self.folder / WEIGHTS_FILE, header)
        }

    def _embedding(self, module: str, read: Mapping[str, torch.Tensor]) -> EmbeddingDelta:
        a, b = (read[self._names[module, part]] for part in ("lora_embedding_A", "lora_embedding_B"))
        return EmbeddingDelta(a, (b.float() * self.settings.scaling(module)).to(b.dtype))

    def _rows(self, module: str, read: Mapping[str, torch.Tensor]) -> TokenRowsDelta:
        token_ids = torch.tensor(self.weights.tokens[module].token_ids)
        order = token_ids.argsort()
        return TokenRowsDelta(token_ids[order], read[self._names[module, "trainable_tokens_delta"]][order])
