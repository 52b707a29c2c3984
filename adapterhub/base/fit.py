"""Whether an adapter fits a base: one answer for registering, verifying, serving, merging and training.

Refused are adapters that would load without an error and answer wrongly: modules that the base does not have or has in
another shape, modules that the config asks for without weights, weights of the base that are not the base's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from adapterhub.base.copied_weights import check_copied_weights
from adapterhub.base.further_fit import check_further_fit
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.base.parameters import ExpertPiece
from adapterhub.base.plain_decoder import plain_decoder_shapes
from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError
from adapterhub.peft_format.checks import AdapterInfo, LoraShape
from adapterhub.peft_format.config import WEIGHTS_FILE, LoraSettings, copied_weights, name_endings
from adapterhub.peft_format.module_patterns import are_cheap
from adapterhub.peft_format.safetensors_header import read_header


def check_against_base(info: AdapterInfo, adapter_folder: Path, base_folder: Path) -> tuple[str, ...]:
    """Runs every check of an adapter that needs its base, which is not loaded.

    Args:
        info: The adapter's metadata, from `inspect_adapter`.
        adapter_folder: Its files.
        base_folder: A base on disk.

    Returns:
        Warnings.

    Raises:
        AdapterIncompatibleError: As `check_fit`, or a weight of the base in the adapter's files is not the base's.
        AdapterInvalidError: As `check_fit`.
        ConfigError: The base cannot be read.
    """
    if _fits_plain_decoder(info, adapter_folder, base_folder):
        return ()
    layers = LinearLayers.of_folder(base_folder)
    if layers is None:
        return ("its shapes were not checked: the base's model is known to code in its folder only",)
    names = check_fit(info.modules, layers, info.config.settings, targets=True)
    check_further_fit(info.further, layers, names, info.config.settings)
    check_copied_weights(adapter_folder, base_folder, layers)
    return _unused(names, layers)


def check_fit(
    adapter: Mapping[str, LoraShape], layers: LinearLayers, settings: LoraSettings, *, targets: bool = False
) -> dict[str, str]:
    """Checks that every module of an adapter is a linear layer of the base's checkpoint, or a mixture's parameter.

    Args:
        adapter: Module name -> shape, from `check_shapes`.
        layers: The base's linear layers.
        settings: The adapter's settings.
        targets: Every layer that they ask for must have weights in the adapter.

    Returns:
        Module name in the adapter -> its name in the model, or among the layers beside the decoder; where the adapter
        changes a parameter, the name of that.

    Raises:
        AdapterIncompatibleError: Modules are missing in the base, have another shape or cannot be changed, or no text
            passes any of them.
        AdapterInvalidError: Two modules are one layer of the base, or a layer that the config asks for has no weights.
    """
    names = {module: _find(module, layers, settings) for module in adapter}
    found = {module: name for module, name in names.items() if name is not None}
    if missing := [module for module in adapter if module not in found]:
        raise _missing(missing, len(adapter), layers)
    if found and layers.beside.keys() >= set(found.values()):
        raise AdapterIncompatibleError(
            "The adapter changes the base's vision tower only, which no text passes.",
            hint="Texts alone are served; train it on the layers of the decoder.",
        )
    for module, name in found.items():
        _check_shape(module, adapter[module], name, layers, settings)
    _refuse_doubles(found)
    if targets:
        _check_targets(settings, frozenset(found.values()), layers)
    return found


def _find(module: str, layers: LinearLayers, settings: LoraSettings) -> str | None:
    if parameter := layers.find_adapted(module, settings):
        return parameter[0]
    name = layers.find(module)
    return layers.find_before_joining(module) if name is None else name


def _check_shape(
    module: str, shape: LoraShape, name: str, layers: LinearLayers, settings: LoraSettings
) -> None:
    piece = ExpertPiece.of_key(name)
    parameter = layers.parameter_shapes.get(piece.parameter if piece else name)
    if piece and parameter:
        has, experts = (parameter.out_features // piece.parts, parameter.in_features), 1
        rank = settings.rank(module)
    elif parameter is None:
        has, experts, rank = {**layers.shapes, **layers.beside}[name], 1, settings.rank(module)
    else:
        has, experts = (parameter.out_features, parameter.in_features), parameter.experts
        _, in_adapter = layers.find_adapted(module, settings) or ("", module)
        rank = settings.rank(in_adapter)
    if (shape.out_features, shape.in_features) != has:
        raise AdapterIncompatibleError(
            f"The adapter does not fit the base: {module!r} has shape {has}, not "
            f"{(shape.out_features, shape.in_features)}.",
            hint="It was trained on a model of another size; use the base that its config names.",
        )
    if (rows := shape.rank * shape.experts) != rank * experts:
        raise AdapterIncompatibleError(
            f"The adapter does not fit the base: {module!r} has {rows} rows of lora_A, not {rank * experts}, which is "
            f"rank {rank} for each of the {experts} experts in {name!r}.",
            hint="It was trained on a model with another number of experts; use the base that its config names.",
        )
    if parameter and settings.use_dora:
        raise AdapterIncompatibleError(
            f"The adapter changes {name!r}, of a mixture, by DoRA, which PEFT does not have for it.",
            hint="Train the experts without DoRA, or LoRA with it on linear layers.",
        )
    if parameter and not parameter.served:
        raise AdapterIncompatibleError(
            f"The adapter changes the base's parameter {name!r}, which cannot be changed for some tokens alone.",
            hint="Train LoRA on linear layers, or with target_parameters on the experts of a mixture.",
        )


def _unused(names: Mapping[str, str], layers: LinearLayers) -> tuple[str, ...]:
    if not (beside := sum(name in layers.beside for name in names.values())):
        return ()
    return (
        f"{beside} of its {len(names)} modules are in parts of the base that no text passes, such as a vision tower; "
        "they are kept, and change no answer",
    )


def _missing(missing: list[str], count: int, layers: LinearLayers) -> AdapterIncompatibleError:
    found = "None" if len(missing) == count else f"Only {count - len(missing)}"
    return AdapterIncompatibleError(
        f"{found} of the adapter's {count} modules are linear layers of the base; {_listed(missing)} missing.",
        hint=_why_missing(missing[0], layers),
    )


def _why_missing(module: str, layers: LinearLayers) -> str:
    if f"{layers.prefix}.{module}" in layers.shapes:
        return "It was trained on the inner model; train it on the causal language model."
    return "The adapter was trained on another architecture; use the base that its config names."


def _refuse_doubles(found: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    whole = set(found.values())
    for module, name in found.items():
        if (piece := ExpertPiece.of_key(name)) and piece.parameter in whole:
            raise AdapterInvalidError(
                f"The adapter has weights for all of {piece.parameter!r} and for one of its experts, {module!r}.",
                hint="Its file was put together from several adapters; save one of them alone.",
            )
        if name in seen:
            raise AdapterInvalidError(
                f"The adapter has weights for {seen[name]!r} and {module!r}, which are one layer of the base.",
                hint="Its file was put together from several adapters; save one of them alone.",
            )
        seen[name] = module


def _fits_plain_decoder(info: AdapterInfo, adapter_folder: Path, base_folder: Path) -> bool:
    """Whether an adapter is seen to fit without transformers, which takes seconds to import; False decides nothing."""
    settings, shapes = info.config.settings, plain_decoder_shapes(base_folder)
    if shapes is None or info.further or settings.modules_to_save or settings.trainable_token_indices:
        return False
    if copied_weights(read_header(adapter_folder / WEIGHTS_FILE)):
        return False
    asked = _named_targets(settings, shapes)
    fits = all(
        shapes.get(module) == (shape.out_features, shape.in_features) and shape.experts == 1
        for module, shape in info.modules.items()
    )
    return fits and asked is not None and info.modules.keys() >= asked


def _check_targets(settings: LoraSettings, adapted: frozenset[str], layers: LinearLayers) -> None:
    asked = _named_targets(settings, layers.shapes)
    if asked is None:
        asked = _targets(settings, layers)
    asked |= {name for name in layers.parameter_shapes if settings.targets(name)}
    known = (*layers.shapes, *layers.parameter_shapes)
    if without := [name for name in known if name in asked and name not in adapted]:
        raise AdapterInvalidError(
            f"The adapter's config and weights contradict each other: the config asks for {len(without)} layers of "
            f"the base without weights; {_listed(without)} missing.",
            hint="Take both files from the same training run.",
        )


def _named_targets(settings: LoraSettings, names: Iterable[str]) -> frozenset[str] | None:
    """The layers that a config asks for if it does no more than list names; otherwise None."""
    targets = settings.target_modules
    if isinstance(targets, str) or settings.exclude_modules or settings.layers_to_transform is not None:
        return None
    listed = frozenset(targets)
    return frozenset(name for name in names if not listed.isdisjoint(name_endings(name)))


def _targets(settings: LoraSettings, layers: LinearLayers) -> frozenset[str]:
    """The layers that a config asks for by PEFT's own rule; none if finding them could take for ever."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if not are_cheap(settings.expressions):
        return frozenset()
    endings = {ending for name in layers.shapes for ending in name_endings(name)}
    targets, excluded = settings.target_modules, settings.exclude_modules
    if isinstance(targets, str) and targets.lower() == "all-linear":  # for PEFT all but the output layer
        targets = tuple(layers.shapes.keys() - {layers.head})
    # However many names a config lists, few of them can match.
    fields = {
        "target_modules": targets if isinstance(targets, str) else endings.intersection(targets),
        "exclude_modules": excluded if isinstance(excluded, str) else endings.intersection(excluded or ()),
    }
    asked = settings.model_copy(update=fields)
    return frozenset(name for name in layers.shapes if check_target_module_exists(asked, name))


def _listed(modules: list[str]) -> str:
    named = ", ".join(repr(module) for module in modules[:3])
    if len(modules) > 3:
        return f"{named} and {len(modules) - 3} more are"
    return f"{named} {'is' if len(modules) == 1 else 'are'}"
