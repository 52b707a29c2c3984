"""The adapters that a merge adds up: one with the weight 1, or the parts of a blend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.fit import check_against_base, check_fit
from adapterhub.base.further_fit import check_further_fit, tied_heads
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.errors import AdapterIncompatibleError, ExportError
from adapterhub.export.round_trip import QUANT_TYPES, RoundTrip
from adapterhub.lora.blending.resolving import check_weight, format_weight, resolve_adapter
from adapterhub.lora.file_tensors import read_tensors
from adapterhub.lora.request import BlendedLoraRequest, LoraRequest, StoredLoraRequest
from adapterhub.peft_format.checks import AdapterInfo, check_digest, inspect_adapter
from adapterhub.peft_format.config import (
    WEIGHTS_FILE,
    FurtherParameter,
    LoraParameter,
    copied_weights,
    further_names,
    parse_tensor_name,
    saved_weights,
)
from adapterhub.peft_format.safetensors_header import TensorInfo, read_header
from adapterhub.registry import AdapterRegistry
from adapterhub.registry.cards import AdapterCard

_COMPUTE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def adapter_folders(registry: AdapterRegistry, adapter: str | Mapping[str, float]) -> dict[Path, float]:
    """The folders of an adapter or a blend, as `merge_adapter` takes them.

    Args:
        registry: Where the adapters are.
        adapter: `"json"`, `"json@3"`, `"json:0.7+support:0.3"`, or reference -> weight.

    Returns:
        Folder -> weight, the largest weight first.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        InvalidRequestError: A reference or a weight is not valid.
    """
    resolved = resolve_adapter(adapter, registry.resolve)
    return {registry.folder(card): weight for card, weight in resolved.parts}


@dataclass(frozen=True)
class AdapterPart:
    """One adapter of a merge.

    Attributes:
        folder: Its PEFT folder, with or without a card.
        weight: Its weight in the sum.
        info: What the checks found.
        card: Its card.
    """

    folder: Path
    weight: float
    info: AdapterInfo
    card: AdapterCard | None

    @classmethod
    def of(cls, folder: Path, weight: float) -> AdapterPart:
        """Reads and checks an adapter without its base.

        Raises:
            AdapterInvalidError: Its files are damaged, or not those that were registered.
            AdapterIncompatibleError: It is of a kind that cannot be merged.
        """
        info, card = inspect_adapter(folder), AdapterCard.of_folder(folder)
        if card:
            check_digest(card.ref, card.digest, info.digest)
        return cls(folder, weight, info, card)

    @property
    def ref(self) -> str:
        """`name@version`; the folder's name if it has no card."""
        return self.card.ref if self.card else self.folder.name

    @property
    def round_trip(self) -> RoundTrip | None:
        """How its training stored the base, by its card; None if that was not in 4 bits or is not recorded."""
        quantization = self.card.base.quantization if self.card else None
        if self.card is None or quantization not in QUANT_TYPES:
            return None
        settings = self.card.lineage.settings
        double = settings.get("bnb_4bit_use_double_quant", True) is not False
        dtype = _COMPUTE_DTYPES.get(str(settings.get("compute_dtype")))
        return RoundTrip(QUANT_TYPES[QUANT_TYPES.index(quantization)], double, dtype)

    def check_base(self, base: Path, fingerprint: BaseFingerprint, *, force: bool) -> None:
        """Checks that it fits a base on disk.

        Args:
            base: The base's folder.
            fingerprint: The base's.
            force: Also take a base other than the one on the card, if the shapes fit.

        Raises:
            AdapterIncompatibleError: It is for another base.
        """
        check_against_base(self.info, self.folder, base)
        recorded = self.card.base.fingerprint if self.card else None
        difference = recorded.mismatch(fingerprint) if recorded else None
        if difference and not force:
            raise AdapterIncompatibleError(
                f"The adapter was trained on another base: {difference}.",
                hint="Give the 16-bit weights of the base that it was trained on; --force (force=True) does it anyway.",
            )

    def module_names(self, layers: LinearLayers) -> dict[str, str]:
        """The module's name in the model -> the adapter's name of it; of all that the adapter changes."""
        further, lora = self.info.further, check_fit(self.info.modules, layers, self.info.config.settings)
        others = check_further_fit(further, layers, lora)
        heads = tied_heads(further, layers, others)
        return {name: module for found in (lora, others, heads) for module, name in found.items()}

    def read(self, module: str) -> dict[LoraParameter | FurtherParameter, torch.Tensor]:
        """Reads the tensors of one of its modules by their parameters, in float32.

        Raises:
            AdapterInvalidError: The file has become shorter.
        """
        return {part: self._read(name) for part, name in self._tensors[module].items()}

    def read_saved(self, parameter: str) -> torch.Tensor:
        """Reads a parameter of a module that it replaces as a whole; otherwise as `read`."""
        return self._read(saved_weights(self._header, self.info.config.settings)[parameter])

    def _read(self, name: str) -> torch.Tensor:
        ((_, tensor),) = read_tensors(self.folder / WEIGHTS_FILE, {name: self._header[name]})
        return tensor.float()

    @cached_property
    def _header(self) -> dict[str, TensorInfo]:
        return read_header(self.folder / WEIGHTS_FILE)

    @cached_property
    def _tensors(self) -> dict[str, dict[LoraParameter | FurtherParameter, str]]:
        """Module -> parameter -> tensor."""
        further = further_names(self._header)
        passed = {*copied_weights(self._header).values(), *further}
        names = {name: parse_tensor_name(name) for name in self._header if name not in passed}
        tensors: dict[str, dict[LoraParameter | FurtherParameter, str]] = {}
        for name, (module, part) in {**names, **further}.items():
            tensors.setdefault(module, {})[part] = name
        return tensors


@dataclass(frozen=True)
class AdapterSum:
    """What is merged: an adapter, or the weighted sum of several.

    Attributes:
        parts: The adapters, the largest weight first.
    """

    parts: tuple[AdapterPart, ...]

    @classmethod
    def of(cls, folders: str | Path | Mapping[Path, float]) -> AdapterSum:
        """Reads and checks adapters without their base.

        Args:
            folders: The folder of one adapter, or folder -> weight, as `adapter_folders` gives.

        Raises:
            ExportError: There is none.
            InvalidRequestError: A weight is no number, or too far from 0.
            AdapterInvalidError: As `AdapterPart.of`.
            AdapterIncompatibleError: As `AdapterPart.of`.
        """
        weights = dict(folders) if isinstance(folders, Mapping) else {Path(folders): 1.0}
        if not weights:
            raise ExportError(
                "There is no adapter to merge.", hint="Name one, or a blend such as a:0.6+b:0.4."
            )
        for folder, weight in weights.items():
            check_weight(Path(folder).name, weight)
        parts = (AdapterPart.of(Path(folder), weight) for folder, weight in weights.items())
        return cls(tuple(sorted(parts, key=lambda part: (-part.weight, part.ref))))

    @property
    def is_blend(self) -> bool:
        """Whether it is more than one adapter as it stands."""
        return len(self.parts) > 1 or self.parts[0].weight != 1

    @property
    def main(self) -> AdapterPart:
        """The part with the largest weight, whose prompt profile and tokenizer are those of the merged model."""
        return self.parts[0]

    @property
    def ref(self) -> str:
        """`json@1`, or `json@1:0.7+support@2:0.3`."""
        if not self.is_blend:
            return self.main.ref
        return "+".join(f"{part.ref}:{format_weight(part.weight)}" for part in self.parts)

    @property
    def digest(self) -> str:
        """The adapter's digest; for a blend the one that requests for it have."""
        return self.request.digest

    @property
    def request(self) -> LoraRequest:
        """What computes with it on the base as it stands."""
        stored = [
            (StoredLoraRequest(part.ref, part.info.digest, part.folder), part.weight) for part in self.parts
        ]
        return BlendedLoraRequest.of(self.ref, stored) if self.is_blend else stored[0][0]

    @property
    def round_trip(self) -> RoundTrip | None:
        """How training stored the base, where the cards of all parts say the same; None if that was not in 4 bits."""
        settings = {part.round_trip for part in self.parts}
        return settings.pop() if len(settings) == 1 else None
