"""Which layers of the base get LoRA weights, and whether all of them have learned."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

from adapterhub.base.linear_layers import LinearLayers
from adapterhub.base.quantized_weights import is_packed
from adapterhub.errors import ConfigError, TrainingError
from adapterhub.training.config import FinetuneConfig


class _Base(Protocol):
    """What is read of a base, which may be a model without values."""

    @property
    def model(self) -> Any: ...

    @property
    def linear_layers(self) -> LinearLayers: ...


def lora_config(config: FinetuneConfig, base: _Base) -> LoraConfig:
    """peft's configuration of a run.

    Raises:
        ConfigError: The base has no layer of a name in `lora.target_modules`, or none at all; or peft cannot train its
            experts as the other settings ask.
    """
    lora, targets = config.lora, _target_modules(config, base)
    made = LoraConfig(
        task_type="CAUSAL_LM",
        revision=config.revision,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=_others_of_these_names(targets, base) or None,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    _check_experts(config, made, base.model)
    return made


def _check_experts(config: FinetuneConfig, made: LoraConfig, model: Any) -> None:
    """peft takes names such as `up_proj` for those of a mixture's experts too, which transformers has joined."""
    joined = copy.deepcopy(made)
    try:
        convert_peft_config_for_transformers(joined, model, None)
    except ValueError as error:
        raise ConfigError(f"lora.target_modules does not fit base {config.base!r}: {error}") from error
    if joined.target_parameters and (config.lora.dropout or config.lora.dora):
        raise ConfigError(
            f"The experts of base {config.base!r} are trained as parameters, without lora.dropout and lora.dora.",
            hint="Leave both out, or name other layers in lora.target_modules, such as those of the attention.",
        )


def _target_modules(config: FinetuneConfig, base: _Base) -> list[str]:
    """The last parts of the names of the layers to adapt; peft's "all-linear" would write every full name."""
    # Not those of a vision tower, which would never learn, and not the head.
    layers = [name for name in base.linear_layers.shapes if name != base.linear_layers.head]
    if not layers:
        raise ConfigError(
            f"Base {config.base!r} has no linear layers that LoRA weights could be added to.",
            hint="Check the number of hidden layers in its config.json.",
        )
    known, targets = sorted({name.rpartition(".")[2] for name in layers}), config.lora.target_modules
    if targets == "all-linear":
        return known
    unknown = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in layers)]
    if unknown:
        raise ConfigError(
            f"lora.target_modules names {unknown[0]!r}, which base {config.base!r} has no layer for.",
            hint=f"Its layers: {', '.join(known)}.",
        )
    return targets


def _others_of_these_names(targets: list[str], base: _Base) -> list[str]:
    """Modules that peft would adapt too: those of a vision tower, and what wraps a layer there."""
    return sorted(
        name
        for name, _ in base.model.named_modules()
        if name not in base.linear_layers.shapes
        and any(f".{name}".endswith(f".{target}") for target in targets)
    )


class LearningCheck:
    """Remembers each `lora_B` before the first step, to fail a run in which one stays as it was."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._before = {name: weight.detach().clone() for name, weight in _lora_b_weights(model)}

    def check(self) -> None:
        """Raises TrainingError if a `lora_B` is unchanged, or the base's weights were re-ordered."""
        after = dict(_lora_b_weights(self._model))
        unchanged = [name for name, weight in self._before.items() if torch.equal(weight, after[name])]
        if unchanged or not self._before:
            raise TrainingError(
                f"{len(unchanged)} of {len(self._before)} lora_B weights did not change, so the adapter did not learn.",
                hint="Train for more steps: the first step of a warm-up has learning rate 0.",
            )
        if any(isinstance(layer, Linear4bit) and is_packed(layer) for layer in self._model.modules()):
            raise TrainingError(
                "bitsandbytes re-ordered the base's weights during the run, which makes gradients wrong.",
                hint="This is a fault of adapterhub with the installed bitsandbytes; please report it.",
            )


def _lora_b_weights(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if "lora_B" in name]
