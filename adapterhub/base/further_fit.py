"""Whether what an adapter changes beside linear layers fits a base: embeddings, whole modules, rows of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapterhub.base.linear_layers import LinearLayers
from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError
from adapterhub.peft_format.config import LoraSettings
from adapterhub.peft_format.further_weights import FurtherWeights, TokenRows, contradiction


def check_further_fit(
    further: FurtherWeights,
    layers: LinearLayers,
    adapted: Mapping[str, str],
    settings: LoraSettings | None = None,
) -> dict[str, str]:
    """Checks that a base has the modules that an adapter changes in other ways than by LoRA on linear layers.

    Args:
        further: What the adapter changes.
        layers: The base's layers.
        adapted: The linear layers that the adapter changes by LoRA, from `check_fit`.
        settings: If given, all that `modules_to_save` and `trainable_token_indices` ask for must have weights in the
            adapter.

    Returns:
        Module name in the adapter -> its name in the model.

    Raises:
        AdapterIncompatibleError: A module is missing in the base, has another shape, cannot be served, or is changed in
            two ways.
        AdapterInvalidError: Weights of a module are missing.
    """
    names = {module: layers.find_module(module) for module in further.names}
    for module, shape in further.embeddings.items():
        _check_shape(
            module, (shape.num_embeddings, shape.embedding_dim), layers.embeddings.get(names[module])
        )
    for module, rows in further.tokens.items():
        _check_rows(module, rows, layers, names[module])
    for module, parameters in further.saved.items():
        _check_saved(module, parameters, layers.replaceable.get(names[module]))
    heads = tied_heads(further, layers, names)
    if settings:
        _check_complete(further, layers, settings, names)
        _check_tokens([*further.tokens, *heads.values()], settings)
    _refuse_two_ways([*adapted.values(), *names.values(), *heads.values()])
    return names


def tied_heads(further: FurtherWeights, layers: LinearLayers, names: Mapping[str, str]) -> dict[str, str]:
    """The output layers whose rows follow those of an embedding, since they share its weights, as in PEFT.

    Args:
        further: What the adapter changes.
        layers: The base's layers.
        names: From `check_further_fit`.

    Returns:
        The embedding, as the adapter names it -> the output layer in the model.
    """
    own = {names[module] for module in further.tokens}
    return {
        module: head
        for module in further.tokens
        for parameter, original in layers.tied.items()
        if original == f"{names[module]}.weight" and (head := parameter.removesuffix(".weight")) not in own
    }


def _check_shape(module: str, shape: tuple[int, ...], has: tuple[int, ...] | None) -> None:
    if has is None:
        raise AdapterIncompatibleError(
            f"The adapter changes {module!r}, which is no embedding of the base.",
            hint="It was trained on another architecture; use the base that its config names.",
        )
    if shape != has:
        raise _other_shape(module, has, shape)


def _check_rows(module: str, rows: TokenRows, layers: LinearLayers, name: str) -> None:
    has = layers.embeddings.get(name) or layers.shapes.get(name)
    _check_shape(module, (has[0] if has else 0, rows.width), has)
    if has and max(rows.token_ids) >= has[0]:
        raise AdapterIncompatibleError(
            f"The adapter trains token {max(rows.token_ids)} of {module!r}, and the base has {has[0]} tokens.",
            hint="It was trained with more tokens (resize_token_embeddings); save that base and use it.",
        )


def _check_saved(
    module: str, parameters: Mapping[str, tuple[int, ...]], has: Mapping[str, tuple[int, ...]] | None
) -> None:
    if has is None:
        raise AdapterIncompatibleError(
            f"The adapter replaces {module!r} (modules_to_save), which is no linear layer, embedding or plain norm of "
            "the base.",
            hint="Train with modules_to_save of such modules only, or use the base that its config names.",
        )
    if parameters.keys() != has.keys():
        raise AdapterInvalidError(
            f"The adapter replaces {module!r} with {', '.join(sorted(parameters))}, and the base has "
            f"{', '.join(sorted(has))} there.",
            hint="Save the adapter with PEFT's save_pretrained.",
        )
    for name, shape in parameters.items():
        if shape != has[name]:
            raise _other_shape(f"{module}.{name}", has[name], shape)


def _check_complete(
    further: FurtherWeights, layers: LinearLayers, settings: LoraSettings, names: Mapping[str, str]
) -> None:
    replaced = {names[module] for module in further.saved}
    asked = (name for name in layers.parameters if settings.saves(name))
    if without := sorted(name for name in asked if name.rpartition(".")[0] not in replaced):
        raise contradiction(f"modules_to_save asks for {without[0]!r}, which has no weights")


def _check_tokens(modules: Sequence[str], settings: LoraSettings) -> None:
    asked = settings.trainable_token_indices
    endings = asked if isinstance(asked, dict) else ("",) if asked else ()  # a list is for the embedding
    for ending in endings:
        if not any(module.endswith(ending) for module in modules):
            raise contradiction(
                f"trainable_token_indices asks for rows of {ending or 'the embedding'!r}, which have no weights"
            )


def _refuse_two_ways(modules: list[str]) -> None:
    seen: set[str] = set()
    for module in modules:
        if module in seen:
            raise AdapterIncompatibleError(
                f"The adapter changes {module!r} in two ways at once, such as LoRA and rows of tokens, which is not "
                "served.",
                hint="Merge it into the base with PEFT's merge_and_unload, or train it in one of the ways.",
            )
        seen.add(module)


def _other_shape(module: str, has: tuple[int, ...], shape: tuple[int, ...]) -> AdapterIncompatibleError:
    return AdapterIncompatibleError(
        f"The adapter does not fit the base: {module!r} has shape {has}, not {shape}.",
        hint="It was trained on a model of another size, or with added tokens (resize_token_embeddings); use that "
        "base, saved with them.",
    )
