"""PEFT's folder format, known without torch: `adapter_config.json` and the names of tensors.

Follows peft 0.21: `tuners/lora/config.py` for the settings, `tuners/lora/model.py` and `utils/other.py`
(`get_pattern_key`) for ranks and scaling, `utils/save_and_load.py` for tensor names. What plain,
rank-stabilised and weight-decomposed LoRA on linear layers need is read; every other kind is named and
refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapterhub._files import read_bounded
from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError, describe_validation
from adapterhub.peft_format.module_patterns import MAX_MODULE_NAME, FewPatterns, Pattern, compile_pattern
from adapterhub.peft_format.safetensors_header import TensorInfo

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 2**20
_CHUNK_BYTES = 2**20

# Settings that change the arithmetic in ways that are not computed here, and what they ask for.
_UNSUPPORTED = {
    "modules_to_save": "it replaces whole modules of the base (modules_to_save)",
    "trainable_token_indices": "it trains single token embeddings (trainable_token_indices)",
    "target_parameters": "it adapts bare parameters such as expert weights (target_parameters)",
    "layer_replication": "it repeats layers of the base (layer_replication)",
    "lora_bias": "its lora_B has a bias (lora_bias)",
    "alora_invocation_tokens": "it acts on a part of the tokens only (activated LoRA)",
    "use_qalora": "it pools its inputs (QA-LoRA)",
    "use_bdlora": "its matrices are block-diagonal (BD-LoRA)",
    "arrow_config": "it routes between adapters inside the layer (Arrow)",
    "kasa_config": "it changes the base's weights (KaSA)",
    "monteclora_config": "it samples its weights (MonteCLoRA)",
}
# These start from a part of the base's own weight and leave the rest in the base; on the plain base they
# answer nonsense. PEFT converts them when saving (`path_initial_model_for_weight_conversion`).
_BASE_CHANGING_INITS = ("pissa", "corda", "olora", "lora_ga", "loftq")

_TENSOR = re.compile(
    rf"base_model\.model\.(?P<module>[\w.-]{{1,{MAX_MODULE_NAME}}})\."
    r"(?:(?P<part>lora_[AB])\.weight|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?)"
)

LoraParameter = Literal["lora_A", "lora_B", "lora_magnitude_vector"]
Rank = Annotated[int, Field(gt=0)]
Alpha = Annotated[float, Field(allow_inf_nan=False)]


class LoraSettings(BaseModel):
    """The settings of a LoRA adapter that its arithmetic depends on."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    peft_type: Literal["LORA"] = "LORA"
    """The PEFT method."""
    r: Rank
    """The rank of modules that no pattern names."""
    lora_alpha: Alpha
    """The numerator of the scaling of modules that no pattern names."""
    use_rslora: bool = False
    """Scaling is alpha / sqrt(r), not alpha / r (https://arxiv.org/abs/2312.03732)."""
    use_dora: bool = False
    """Magnitudes are trained beside the matrices (https://arxiv.org/abs/2402.09353)."""
    rank_pattern: Annotated[dict[Pattern, Rank], FewPatterns] = {}
    """Module name or regular expression -> rank."""
    alpha_pattern: Annotated[dict[Pattern, Alpha], FewPatterns] = {}
    """Module name or regular expression -> alpha."""
    target_modules: tuple[str, ...] | str = ()
    """Names of the adapted modules, or one regular expression."""

    def rank(self, module: str) -> int:
        """The rank in one module, by its name in the base."""
        return next((rank for pattern, rank in self._ranks if pattern.match(module)), self.r)

    def scaling(self, module: str) -> float:
        """What lora_B · lora_A is multiplied by in one module."""
        alpha = next((alpha for pattern, alpha in self._alphas if pattern.match(module)), self.lora_alpha)
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def canonical(self) -> bytes:
        """The settings that change the arithmetic, spelled in one way only."""
        fields = {"peft_type", "r", "lora_alpha", "use_rslora", "use_dora"}
        patterns = {
            "rank_pattern": list(self.rank_pattern.items()),
            "alpha_pattern": list(self.alpha_pattern.items()),
        }
        return json.dumps(self.model_dump(include=fields) | patterns, sort_keys=True).encode()

    @cached_property
    def _ranks(self) -> list[tuple[re.Pattern[str], int]]:
        return [(compile_pattern(pattern), rank) for pattern, rank in self.rank_pattern.items()]

    @cached_property
    def _alphas(self) -> list[tuple[re.Pattern[str], float]]:
        return [(compile_pattern(pattern), alpha) for pattern, alpha in self.alpha_pattern.items()]


@dataclass(frozen=True)
class AdapterConfig:
    """What an `adapter_config.json` says.

    Attributes:
        settings: What the arithmetic depends on.
        base_name: The base that it names: a hub id or a path.
        base_revision: The base's revision.
    """

    settings: LoraSettings
    base_name: str | None
    base_revision: str | None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the config of an adapter's folder.

        Raises:
            AdapterInvalidError: It is missing, too large or not what PEFT writes.
            AdapterIncompatibleError: It describes a kind of adapter that cannot be served.
        """
        return cls.parse(read_bounded(folder / CONFIG_FILE, MAX_CONFIG_BYTES))

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Reads the content of an `adapter_config.json`; raises as `read` does."""
        try:
            config = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _invalid("is not JSON") from error
        if not isinstance(config, dict):
            raise _invalid("is not a JSON object")
        _refuse_unsupported(config)
        try:
            settings = LoraSettings.model_validate(_without_nulls(config))
        except ValidationError as error:
            raise _invalid(f"has a wrong value: {describe_validation(error)}") from error
        return cls(settings, _text(config, "base_model_name_or_path"), _text(config, "revision"))


def _without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in config.items() if value is not None}
    targets = fields.get("target_modules")
    # PEFT holds them as a set, so the order in the file is chance.
    if isinstance(targets, list) and all(isinstance(target, str) for target in targets):
        fields["target_modules"] = tuple(sorted(targets))
    return fields


def _text(config: Mapping[str, Any], field: str) -> str | None:
    value = config.get(field)
    return value[:500] if isinstance(value, str) and value else None


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if reason := _unsupported(config):
        raise AdapterIncompatibleError(
            f"The adapter cannot be served: {reason}.",
            hint="LoRA on linear layers is served: plain, rank-stabilised (rsLoRA) or weight-decomposed (DoRA).",
        )


def _unsupported(config: Mapping[str, Any]) -> str | None:
    kind, task = (str(config.get(field))[:40] for field in ("peft_type", "task_type"))
    if kind != "LORA":
        return f"its kind (peft_type) is {kind}, not LORA"
    if task not in ("None", "CAUSAL_LM"):
        return f"it was made for the task {task}, not for generating text (CAUSAL_LM)"
    if config.get("bias", "none") not in ("none", None):
        return "it trains the base's biases (bias)"
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(_BASE_CHANGING_INITS):
        return f"its training changed the base's weights too (init_lora_weights={init[:40]!r})"
    return next((why for field, why in _UNSUPPORTED.items() if config.get(field)), None)


def parse_tensors(header: Mapping[str, TensorInfo]) -> dict[str, dict[LoraParameter, TensorInfo]]:
    """Sorts an adapter's tensors by module.

    Args:
        header: Tensor name -> tensor, as `read_header` returns it.

    Returns:
        Module name in the base -> part -> tensor.

    Raises:
        AdapterIncompatibleError: A tensor is not a part of LoRA on a linear layer.
    """
    modules: dict[str, dict[LoraParameter, TensorInfo]] = {}
    for name, info in header.items():
        module, part = parse_tensor_name(name)
        modules.setdefault(module, {})[part] = info
    return modules


def adapter_digest(settings: LoraSettings, weights: Path) -> str:
    """An adapter's identity: sha256 over the settings that change the arithmetic and the weights' bytes."""
    digest = hashlib.sha256(settings.canonical() + b"\n")
    with weights.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def parse_tensor_name(name: str) -> tuple[str, LoraParameter]:
    """Splits `base_model.model.<module>.lora_A.weight` into module and part.

    Raises:
        AdapterIncompatibleError: It has another form.
    """
    match = _TENSOR.fullmatch(name)
    if match is None:
        raise AdapterIncompatibleError(
            f"The adapter holds the tensor {name[:200]!r}, which is {_what_it_is(name)}.",
            hint="Train LoRA on linear layers only, without modules_to_save and embeddings.",
        )
    part: LoraParameter = "lora_A" if match["part"] == "lora_A" else "lora_B"
    return match["module"], part if match["part"] else "lora_magnitude_vector"


def _what_it_is(name: str) -> str:
    if "lora_embedding" in name:
        return "LoRA on an embedding"
    if "modules_to_save" in name or (name.endswith((".weight", ".bias")) and "lora_" not in name):
        return "a weight of the base itself"
    return "no part of LoRA on a linear layer"


def _invalid(reason: str) -> AdapterInvalidError:
    return AdapterInvalidError(
        f"{CONFIG_FILE} {reason}.", hint="Copy the adapter's folder again; PEFT's save_pretrained writes it."
    )
