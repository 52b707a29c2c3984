"""A launch file of vLLM for a registry: `vllm serve --config vllm.yaml` serves the base and each adapter by its name.

The adapters are exported beside it as plain LoRA (`LoraForm.plain`), which every version of vLLM reads alike: older
ones pass over `rank_pattern` and `alpha_pattern` in silence. vLLM renders one chat template for all and knows no
system prompts, stops or sampling defaults of an adapter; the report says which adapters have them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub._files import new_folder, os_errors_as
from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.locating import local_folder
from adapterhub.capabilities import VLLM_MAX_LORA_RANKS, AdapterFeatures, Backend, capability
from adapterhub.errors import AdapterIncompatibleError, ConfigError, ExportError
from adapterhub.export.free_folder import free_folder
from adapterhub.export.lora_form import LoraForm
from adapterhub.export.peft_folder import export_peft
from adapterhub.lora.blending.parts import check_same_base
from adapterhub.lora.blending.resolving import Blend, ResolvedAdapter, resolve_adapter
from adapterhub.registry.cards import AdapterCard, PromptProfile
from adapterhub.registry.store import AdapterRegistry

LAUNCH_FILE = "vllm.yaml"
ADAPTERS_FOLDER = "adapters"

_MAX_FOLDER_NAME = 200
_COMMENT = f"# In this folder: vllm serve --config {LAUNCH_FILE}\n"


@dataclass(frozen=True)
class VllmAdapter:
    """One adapter in a launch file.

    Attributes:
        name: The name that requests give as `model`.
        adapter: The reference with its version.
        path: Its folder, relative to the launch file's.
        rank: Its rank.
        error: How far its change is from the adapter's; see `PeftExport`.
    """

    name: str
    adapter: str
    path: str
    rank: int
    error: float


@dataclass(frozen=True)
class VllmExport:
    """What a launch file has.

    Attributes:
        model: The base that vLLM loads: a hub id, or a folder of this machine.
        max_lora_rank: The `--max-lora-rank` that all adapters fit.
        adapters: The adapters.
        warnings: What vLLM does not do for them.
    """

    model: str
    max_lora_rank: int
    adapters: tuple[VllmAdapter, ...]
    warnings: tuple[str, ...]


def export_vllm(
    registry: AdapterRegistry,
    out: str | Path,
    names: Sequence[str] = (),
    form: LoraForm | None = None,
    *,
    base: str | None = None,
    max_loras: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> VllmExport:
    """Writes a launch file of vLLM, and beside it the adapters that it serves.

    Args:
        registry: The registry.
        out: The new folder; it must not exist, or be empty.
        names: The adapters to serve, also `json@3` or blends such as `json:0.6+code:0.4`, under the names as given; all
            that are ready if empty.
        form: As in `export_peft`; ranks and alphas are always made one.
        base: The base that vLLM loads: a folder or a hub id. If not given, the one that the cards name. If the registry
            has adapters of several bases, only those of this one are served.
        max_loras: How many adapters may be in one batch.
        progress: Called with the number of adapters written so far and in total.

    Raises:
        ExportError: `out` is not empty, there is nothing to serve, a blend's rank is above 512, an adapter would differ
            too much, or writing failed. Then `out` is not created.
        AdapterIncompatibleError: vLLM does not run an adapter in this form, such as DoRA or a rank above 512, or an
            adapter belongs to another base.
        AdapterNotFoundError: There is no such adapter.
        AdapterInvalidError: An adapter's files are damaged, or not those that were registered.
        InvalidRequestError: A reference is not valid.
        ConfigError: No base is known, or it cannot be found.
    """
    out = free_folder(out)
    chosen = _chosen(registry, names, base)
    form = replace(form or LoraForm(), plain=True)
    _check(registry, chosen, form)
    cards = [adapter.main_card for adapter in chosen.values()]
    model = _model(cards[0], base)
    served = model.get("served-model-name", model["model"])
    if served in chosen:
        raise ExportError(
            f"The base and an adapter would both be {served!r}, and vLLM would answer with the base.",
            hint=f"Name the adapters to serve, this one as {chosen[served].ref!r}.",
        )
    with (
        os_errors_as(ExportError, f"The launch file could not be written to {str(out)!r}"),
        new_folder(out) as folder,
    ):
        adapters: list[VllmAdapter] = []
        for name, adapter in chosen.items():
            known = next((one for one in adapters if one.adapter == adapter.ref), None)
            exported = known or _export(registry, name, adapter, form, folder, base)
            adapters.append(replace(exported, name=name))
            if progress:
                progress(len(adapters), len(chosen))
        rank = _max_lora_rank(adapters)
        settings = _settings(model, served, rank, min(max_loras, len(adapters)), adapters)
        (folder / LAUNCH_FILE).write_text(_COMMENT + _yaml(settings), encoding="utf-8")
    warnings = (f"{card.ref}: {what}" for card in cards for what in _not_done(card.prompt))
    return VllmExport(model["model"], rank, tuple(adapters), tuple(warnings))


def _chosen(registry: AdapterRegistry, names: Sequence[str], base: str | None) -> dict[str, ResolvedAdapter]:
    """Name -> adapter; of a registry with several bases those of the given one."""
    if names:
        return {name: resolve_adapter(name, registry.resolve) for name in names}
    cards = [card for card in registry.list() if card.status == "ready"]
    of_base = [card for card in cards if card.base.name == base]
    chosen = of_base if base and of_base else cards
    if not chosen:
        raise ExportError("The registry has no adapter to serve.", hint="Register one with `adapterhub add`.")
    return {card.name: resolve_adapter(card.ref, registry.resolve) for card in chosen}


def _check(registry: AdapterRegistry, chosen: dict[str, ResolvedAdapter], form: LoraForm) -> None:
    parts = [part for adapter in chosen.values() for part in adapter.parts]
    check_same_base(Blend(tuple(parts)))
    for card, _ in parts:
        stored = AdapterFeatures.of_folder(registry.folder(card))
        found = capability(stored.rewritten(rank=form.rank, dora=form.dora == "svd"), Backend.VLLM)
        if found.runs:
            continue
        hint = (
            f"Add {found.conversion.approximation}, which tells the error."
            if found.conversion
            else found.hint
        )
        raise AdapterIncompatibleError(
            f"{card.ref} does not run on vLLM: {found.reason}.", hint=f"{hint} Or name the adapters to serve."
        )


def _model(card: AdapterCard, base: str | None) -> dict[str, str]:
    """The settings that name the base."""
    name = base or card.base.name
    if name is None:
        raise ConfigError(f"The card of {card.ref!r} names no base.", hint="Give it with --base (base).")
    if folder := local_folder(name):
        known = card.base.fingerprint
        if known and (difference := known.mismatch(BaseFingerprint.of(folder))):
            raise AdapterIncompatibleError(
                f"{card.ref} was trained on another base: {difference}.",
                hint="Give its base with --base (base).",
            )
        return {"model": str(folder.resolve()), "served-model-name": Path(name).name}
    revision = card.base.revision_of(name)
    return {"model": name} | ({"revision": revision} if revision else {})


def _export(
    registry: AdapterRegistry,
    name: str,
    adapter: ResolvedAdapter,
    form: LoraForm,
    folder: Path,
    base: str | None,
) -> VllmAdapter:
    # With the version in it, for vLLM's prefix cache knows adapters by name and path.
    path = f"{ADAPTERS_FOLDER}/{_folder_name(adapter.ref)}"
    known = local_folder(base) if base else None
    report = export_peft(registry, _weights(adapter), folder / path, form, base_folder=known)
    return VllmAdapter(name, report.adapter, path, report.rank, report.error)


def _folder_name(ref: str) -> str:
    """A name for an adapter's folder; that of a long blend ends with a digest, since file systems limit names."""
    name = ref.replace(":", "=")
    if len(name) <= _MAX_FOLDER_NAME:
        return name
    digest = hashlib.sha256(ref.encode()).hexdigest()[:16]
    return f"{name[: _MAX_FOLDER_NAME - len(digest) - 1]}-{digest}"


def _weights(adapter: ResolvedAdapter) -> dict[str, float]:
    return {card.ref: weight for card, weight in adapter.parts}


def _max_lora_rank(adapters: Iterable[VllmAdapter]) -> int:
    highest = max(adapters, key=lambda adapter: adapter.rank)
    rank = next((rank for rank in VLLM_MAX_LORA_RANKS if rank >= highest.rank), None)
    if rank is None:
        raise ExportError(
            f"{highest.name} has rank {highest.rank}; vLLM takes at most {VLLM_MAX_LORA_RANKS[-1]}.",
            hint="Cut it: --rank 512 (LoraForm(rank=512)).",
        )
    return rank


def _settings(
    model: dict[str, str], served: str, rank: int, max_loras: int, adapters: Sequence[VllmAdapter]
) -> dict[str, Any]:
    modules = [{"name": one.name, "path": one.path, "base_model_name": served} for one in adapters]
    return {
        **model,
        "enable-lora": True,
        "max-loras": max_loras,
        "max-cpu-loras": len(adapters),
        "max-lora-rank": rank,
        "lora-modules": [json.dumps(module) for module in modules],
    }


def _yaml(settings: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=10_000))


def _not_done(prompt: PromptProfile) -> Iterator[str]:
    if prompt.chat_template or prompt.format in ("instruction", "plain"):
        yield "vLLM renders the base's chat template, not the adapter's own prompts"
    if prompt.system:
        yield "send its system prompt with each request"
    if prompt.stop or prompt.generation:
        names = [*(["stop"] if prompt.stop else []), *prompt.generation]
        yield f"send its defaults with each request: {', '.join(names)}"
