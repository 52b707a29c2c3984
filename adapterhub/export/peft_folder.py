"""Exporting an adapter or a blend as a folder that PEFT, and every server that reads PEFT's format, loads.

    reference -> cards -> the stored files as they are, or changes rewritten as another LoRA -> folder with a model card

What was rewritten is read back and compared with what it stands for. Tokenizer files and licences go with the weights;
what is only the registry's, such as the routing examples, does not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adapterhub._files import new_folder, os_errors_as
from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.base.module_weights import ModuleWeights
from adapterhub.errors import AdapterIncompatibleError, ConfigError, ExportError
from adapterhub.export.adapter_card import adapter_card
from adapterhub.export.base_name import public_base
from adapterhub.export.free_folder import free_folder
from adapterhub.export.lora_form import ChangeError, LoraForm, change_error, low_rank, pad_ranks
from adapterhub.lora.blending.methods import BlendSettings, blend_deltas
from adapterhub.lora.blending.parts import check_files, check_same_base, read_parts
from adapterhub.lora.blending.resolving import ResolvedAdapter, SingleAdapter, resolve_adapter
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.loading import read_deltas_without_base
from adapterhub.lora.saving import save_adapter
from adapterhub.peft_format.checks import AdapterInfo, inspect_adapter
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE, copied_weights
from adapterhub.peft_format.safetensors_header import read_header
from adapterhub.registry.cards import AdapterCard
from adapterhub.registry.local_base import local_base
from adapterhub.registry.model_card import MODEL_CARD_FILE
from adapterhub.registry.sources import AdapterFiles, copy_adapter
from adapterhub.registry.store import AdapterRegistry


@dataclass(frozen=True)
class PeftExport:
    """What an exported PEFT folder holds.

    Attributes:
        adapter: The reference of the adapter, or of the blend, with versions.
        digest: The digest of the exported files; that of the adapter if nothing had to change.
        rank: The highest rank of its layers.
        size_bytes: The size of the weights' file.
        error: How far its change of the base is from the adapter's, as in `ChangeError`; 0.01 is one percent.
        worst_layer: The layer that is the farthest; None if nothing differs.
        worst_error: Its error.
    """

    adapter: str
    digest: str
    rank: int
    size_bytes: int
    error: float
    worst_layer: str | None
    worst_error: float

    @property
    def details(self) -> str:
        """What a model card says about weights that were rewritten; empty if they were not."""
        if self.worst_layer is None:
            return ""
        return (
            f"Its weights were rewritten with rank {self.rank}: its change of the base differs from that of "
            f"{self.adapter} by {self.error:.2%} (Frobenius norm over all layers; at most {self.worst_error:.2%}, in "
            f"`{self.worst_layer}`). What was evaluated is {self.adapter} itself."
        )


def export_peft(
    registry: AdapterRegistry,
    adapter: str | Mapping[str, float],
    out: str | Path,
    form: LoraForm | None = None,
    *,
    base_folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PeftExport:
    """Writes an adapter, or the exact sum of a blend, as a PEFT folder.

    Args:
        registry: Where it is registered.
        adapter: A reference, or a blend: `"json:0.7+support:0.3"` or reference -> weight.
        out: The new folder; it must not exist, or be empty.
        form: What its readers can take; if not given, one adapter is copied byte for byte.
        base_folder: The base, for DoRA; if not given, the one on the card if it is on this machine.
        progress: Called with the number of layers rewritten so far and in total.

    Raises:
        ExportError: `out` is not empty, the result is too far from the adapter, or writing failed. Then `out` is not
            created.
        AdapterNotFoundError: There is no such adapter.
        AdapterInvalidError: An adapter's files are damaged, or not those that were registered.
        AdapterIncompatibleError: The parts of a blend do not belong together, DoRA does not fit the form, or the base
            that it needs is another.
        InvalidRequestError: The reference is not valid.
        ConfigError: The base is needed and is not on this machine, or cannot be read.
    """
    out = free_folder(out)
    resolved = resolve_adapter(adapter, registry.resolve)
    export = _Export(registry, resolved, form or LoraForm(), Path(base_folder) if base_folder else None)
    with os_errors_as(ExportError, f"{resolved.ref} could not be exported to {str(out)!r}"):
        export.check_parts()
        with new_folder(out) as folder:
            error = export.write(folder, progress or (lambda done, total: None))
            info = inspect_adapter(folder)
            report = PeftExport(
                adapter=resolved.ref,
                digest=info.digest,
                rank=info.max_rank,
                size_bytes=info.size_bytes,
                error=error.error,
                worst_layer=error.worst_layer,
                worst_error=error.worst_error,
            )
            modules = (*info.modules, *info.further.names)
            text = adapter_card(resolved, report.details, modules=modules)
            (folder / MODEL_CARD_FILE).write_text(text, encoding="utf-8")
    return report


@dataclass(frozen=True)
class _Export:
    registry: AdapterRegistry
    adapter: ResolvedAdapter
    form: LoraForm
    base_folder: Path | None

    def check_parts(self) -> None:
        check_same_base(self.adapter)
        check_files(self.registry, self.adapter)
        for card, _ in self.adapter.parts if self.form.plain else ():
            further = inspect_adapter(self.registry.folder(card)).further.names
            if others := [*further, *card.peft.target_parameters]:
                raise AdapterIncompatibleError(
                    f"{card.ref} changes {others[0]!r} by more than LoRA on linear layers, which few readers take.",
                    hint="Merge it into its base with `adapterhub merge`; --format peft without --plain copies it.",
                )

    def write(self, folder: Path, progress: Callable[[int, int], None]) -> ChangeError:
        source = self.registry.folder(self.adapter.main_card)
        copy_adapter(AdapterFiles(source, source), folder)
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        config["base_model_name_or_path"] = public_base(self.adapter.main_card)
        if not isinstance(self.adapter, SingleAdapter) or not self._config_suffices(source):
            return self._rewrite(folder, config, progress)
        if self.form.plain:
            config |= _plain_settings(inspect_adapter(source))
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return ChangeError()

    def _config_suffices(self, source: Path) -> bool:
        """Whether the stored weights have the form that is wanted, with another config at most."""
        info = inspect_adapter(source)
        # Few readers pass over the copies of the base's weights that PEFT saves with an adapted output layer.
        uniform = len(_ranks_and_scalings(info)) == 1 and not copied_weights(
            read_header(source / WEIGHTS_FILE)
        )
        return (
            (self.form.dora == "keep" or not info.config.settings.use_dora)
            and info.max_rank <= (self.form.rank or math.inf)
            and (uniform or not self.form.plain)
        )

    def _rewrite(
        self, folder: Path, config: Mapping[str, Any], progress: Callable[[int, int], None]
    ) -> ChangeError:
        wanted = self._changes()
        rank = self.form.rank or max(len(delta.a) for delta in wanted.values())
        written = {}
        for done, (module, delta) in enumerate(wanted.items(), start=1):
            written[module] = low_rank(module, delta, rank, self.base_weight)
            progress(done, len(wanted))
        if self.form.plain:
            written = pad_ranks(written)
        save_adapter(folder, written, config, self.layers.shapes if self.layers else {})
        error = change_error(read_deltas_without_base(folder, self.layers), wanted, self.base_weight)
        if error.error > self.form.max_error:
            raise ExportError(
                f"The result would differ from {self.adapter.ref} by {error.error:.1%}, more than "
                f"{self.form.max_error:.1%}.",
                hint="Allow a higher rank or a larger max_error; merging the adapter into its base is exact.",
            )
        return error

    def _changes(self) -> dict[str, LoraDelta]:
        """What the adapter, or the sum of the blend's parts, changes; with magnitudes where a part has DoRA."""
        dora = [card for card, _ in self.adapter.parts if card.peft.use_dora]
        if dora and self.form.dora == "keep":
            raise AdapterIncompatibleError(
                f"{dora[0].ref} uses DoRA, which no LoRA of another rank, and no sum of adapters, can hold exactly.",
                hint="dora='svd' (--dora svd) approximates it and tells the error; merging into the base is exact.",
            )
        if dora and self.base_weight is None:
            raise ConfigError(
                f"{dora[0].ref} uses DoRA, whose change depends on the base's weights, and its base is not on this "
                "machine.",
                hint="Give the base with --base (base_folder).",
            )
        if dora:
            self._check_base(dora[0])
        parts = read_parts(self.registry, self.adapter, self.layers, self.base_weight)
        return blend_deltas(parts, BlendSettings())

    def _check_base(self, card: AdapterCard) -> None:
        """Refuses another base: its weights would give DoRA another change."""
        known = card.base.fingerprint
        if self.base and known and (difference := known.mismatch(BaseFingerprint.of(self.base))):
            raise AdapterIncompatibleError(
                f"{card.ref} was trained on another base: {difference}.",
                hint="Give the 16-bit weights of its base with --base (base_folder).",
            )

    @cached_property
    def base(self) -> Path | None:
        return self.base_folder or local_base(self.adapter.main_card.base)

    @cached_property
    def layers(self) -> LinearLayers | None:
        return LinearLayers.of_folder(self.base) if self.base else None

    @cached_property
    def base_weight(self) -> ModuleWeights | None:
        return ModuleWeights(self.base, self.layers) if self.base and self.layers else None


def _ranks_and_scalings(info: AdapterInfo) -> set[tuple[int, float]]:
    settings = info.config.settings
    return {(shape.rank, settings.scaling(module)) for module, shape in info.modules.items()}


def _plain_settings(info: AdapterInfo) -> dict[str, Any]:
    """The settings with which `lora_alpha / r` is the scaling of every layer, where all have one."""
    ((rank, scaling),) = _ranks_and_scalings(info)
    alpha = scaling * rank
    whole = round(alpha)
    return {
        "r": rank,
        "lora_alpha": whole if math.isclose(alpha, whole, rel_tol=1e-12) else alpha,
        "use_rslora": False,
        "bias": "none",
        "rank_pattern": {},
        "alpha_pattern": {},
    }
