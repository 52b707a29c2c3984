"""What an adapter asks of the engine that runs it, read from its config and the names of its tensors.

Unlike `AdapterConfig`, which refuses what the registry does not store, this also names what no back end here can run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from adapterhub._files import read_bounded
from adapterhub.errors import AdapterInvalidError
from adapterhub.peft_format.config import CONFIG_FILE, MAX_CONFIG_BYTES, WEIGHTS_FILE
from adapterhub.peft_format.safetensors_header import read_header


class Feature(StrEnum):
    """What an adapter may have beside plain LoRA on linear layers; PEFT's names."""

    RSLORA = "use_rslora"
    RANK_PATTERN = "rank_pattern"
    ALPHA_PATTERN = "alpha_pattern"
    DORA = "use_dora"
    BIAS = "bias"
    COPIED_WEIGHTS = "copied_weights"
    EMBEDDINGS = "embeddings"
    MODULES_TO_SAVE = "modules_to_save"
    TRAINABLE_TOKENS = "trainable_token_indices"
    TARGET_PARAMETERS = "target_parameters"
    EXPERTS = "experts"
    LORA_BIAS = "lora_bias"
    BASE_CHANGING_INIT = "init_lora_weights"
    LORA_GA = "lora_ga"
    ALORA = "alora_invocation_tokens"
    LAYER_REPLICATION = "layer_replication"
    BDLORA = "use_bdlora"
    QALORA = "use_qalora"
    ARROW = "arrow_config"
    KASA = "kasa_config"
    MONTECLORA = "monteclora_config"
    OTHER_METHOD = "peft_type"
    OTHER_TASK = "task_type"


# The features that a config has if the field of that name is set.
_FIELDS = (
    Feature.RSLORA,
    Feature.RANK_PATTERN,
    Feature.ALPHA_PATTERN,
    Feature.DORA,
    Feature.MODULES_TO_SAVE,
    Feature.TRAINABLE_TOKENS,
    Feature.TARGET_PARAMETERS,
    Feature.LORA_BIAS,
    Feature.ALORA,
    Feature.LAYER_REPLICATION,
    Feature.BDLORA,
    Feature.QALORA,
    Feature.ARROW,
    Feature.KASA,
    Feature.MONTECLORA,
)
_REWRITTEN = {
    Feature.RSLORA,
    Feature.RANK_PATTERN,
    Feature.ALPHA_PATTERN,
    Feature.BIAS,
    Feature.COPIED_WEIGHTS,
}
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq")
_LORA_GA = "lora_ga"
# Tensors of the embedding and the output layer that servers pass over (vllm/lora/utils.py, is_base_embedding_weights).
_PASSED_OVER = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True)
class AdapterFeatures:
    """What an adapter asks of an engine.

    Attributes:
        features: What it has beside plain LoRA on linear layers.
        max_rank: The highest rank that its config names.
        is_blend: Whether it is a blend, which servers take as one adapter of plain LoRA.
    """

    features: frozenset[Feature]
    max_rank: int
    is_blend: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], tensors: Iterable[str] = ()) -> Self:
        """Reads them from an adapter's files.

        Args:
            config: The content of `adapter_config.json`.
            tensors: The names of its tensors; without them what only they tell is not known: LoRA on embeddings and
                experts, and copies of the base's weights.
        """
        found = {feature for feature in _FIELDS if config.get(feature)}
        found |= _of_values(config) | _of_tensors(tensors, Feature.MODULES_TO_SAVE in found)
        return cls(frozenset(found), _max_rank(config))

    @classmethod
    def of_blend(cls, parts: Iterable[Self]) -> Self:
        """What the exact sum of adapters has: one adapter, whose rank is the sum of theirs."""
        adapters = [part.rewritten() for part in parts]
        features = frozenset[Feature]().union(*(one.features for one in adapters))
        return cls(features, sum(one.max_rank for one in adapters), is_blend=True)

    def rewritten(self, *, rank: int | None = None, dora: bool = False) -> Self:
        """What it has once `adapterhub export --plain` has rewritten it.

        Args:
            rank: The highest rank that is kept.
            dora: Whether DoRA is approximated.
        """
        gone = _REWRITTEN | ({Feature.DORA} if dora else set())
        max_rank = min(self.max_rank, rank or self.max_rank)
        return replace(self, features=self.features - gone, max_rank=max_rank)

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """Reads them from an adapter's folder, also of a kind that cannot be registered.

        Raises:
            AdapterInvalidError: A file is missing, too large or damaged.
        """
        config = _read_config(read_bounded(folder / CONFIG_FILE, MAX_CONFIG_BYTES))
        return cls.of(config, read_header(folder / WEIGHTS_FILE))

    @classmethod
    def of_files(cls, config: bytes, tensors: Iterable[str]) -> Self:
        """Reads them from the content of `adapter_config.json` and the names of the tensors.

        Raises:
            AdapterInvalidError: The config is damaged.
        """
        return cls.of(_read_config(config), tensors)


def _read_config(content: bytes) -> dict[str, Any]:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AdapterInvalidError(f"{CONFIG_FILE} is not JSON.", hint="Copy the folder again.") from error
    if not isinstance(config, dict):
        raise AdapterInvalidError(f"{CONFIG_FILE} is not a JSON object.", hint="Copy the folder again.")
    return config


def _of_values(config: Mapping[str, Any]) -> set[Feature]:
    """The features that depend on what a field says."""
    init = str(config.get("init_lora_weights")).lower()
    asked = {
        Feature.BIAS: config.get("bias") not in (None, "none"),
        Feature.BASE_CHANGING_INIT: init.startswith(_BASE_CHANGING_INITS),
        Feature.LORA_GA: init.startswith(_LORA_GA),
        Feature.OTHER_METHOD: config.get("peft_type") != "LORA",
        Feature.OTHER_TASK: config.get("task_type") not in (None, "CAUSAL_LM"),
    }
    return {feature for feature, is_asked in asked.items() if is_asked}


def _of_tensors(names: Iterable[str], replaces_modules: bool) -> set[Feature]:
    """The features that tensors show; a whole weight belongs to a replaced module where there are any."""
    found = set()
    for name in names:
        if ".lora_embedding_" in name:
            found.add(Feature.EMBEDDINGS)
        if _EXPERT.search(name):
            found.add(Feature.EXPERTS)
        is_weight = "lora_" not in name and name.endswith((".weight", ".bias"))
        if is_weight and not replaces_modules and not name.endswith(_PASSED_OVER):
            found.add(Feature.COPIED_WEIGHTS)
    return found


def _max_rank(config: Mapping[str, Any]) -> int:
    pattern = config.get("rank_pattern")
    r = config.get("r")
    ranks = [8 if r is None else r, *(pattern.values() if isinstance(pattern, dict) else ())]
    return max((math.ceil(rank) for rank in ranks if _is_number(rank)), default=0)


def _is_number(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
