"""PEFT's `adapter_config.json` and tensor names, parsed without torch.

Follows peft 0.21: `tuners/lora/config.py` for the settings, `tuners/lora/model.py` and `utils/other.py`
(`get_pattern_key`) for ranks and scaling, `utils/save_and_load.py` for tensor names. Supported is LoRA on linear
layers: plain, rank-stabilised (rsLoRA) and weight-decomposed (DoRA); and LoRA on bare parameters (`target_parameters`),
such as a mixture's experts. `further_weights` has what a file may hold beside it. Other kinds are refused with the
reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapterhub._files import LFS_HEAD_BYTES, read_bounded, refuse_lfs_pointer
from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError, describe_validation
from adapterhub.peft_format.module_patterns import MAX_MODULE_NAME, BoundedPatterns, Pattern, PatternTable
from adapterhub.peft_format.other_tensors import describe_tensor
from adapterhub.peft_format.safetensors_header import TensorInfo

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 2**20
_CHUNK_BYTES = 2**20
_MAX_NAMES = 1024

# Settings that are not supported -> the reason, for the error message.
_UNSUPPORTED = {
    "layer_replication": "it repeats layers of the base (layer_replication)",
    "lora_bias": "its lora_B has a bias (lora_bias)",
    "alora_invocation_tokens": "it acts on a part of the tokens only (activated LoRA)",
    "use_qalora": "it pools its inputs (QA-LoRA)",
    "use_bdlora": "its matrices are block-diagonal (BD-LoRA)",
    "arrow_config": "it routes between adapters inside the layer (Arrow)",
    "kasa_config": "it changes the base's weights (KaSA)",
    "monteclora_config": "it samples its weights (MonteCLoRA)",
}
# These initialisations subtract the initial adapter from the base's weights, so the adapter is wrong on the unmodified
# base. PEFT can convert such adapters when saving (`path_initial_model_for_weight_conversion`).
_BASE_CHANGING_INITS = ("pissa", "corda", "olora", "lora_ga", "loftq")

# JSON can escape them, but no text that is stored can hold them.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_TENSOR = re.compile(
    rf"base_model\.model\.(?P<module>[\w.-]{{1,{MAX_MODULE_NAME}}})\."
    r"(?:(?P<part>lora_[AB])\.weight|(?P<magnitude>lora_magnitude_vector)(?:\.weight)?)"
)

# A weight of the base, which PEFT saves for adapted output heads and with `bias`: `<module>.base_layer.weight`.
_COPY = re.compile(
    rf"base_model\.model\.(?P<module>[\w.-]{{1,{MAX_MODULE_NAME}}})\.(?P<parameter>weight|bias)"
)

# LoRA on an embedding, and single rows of an embedding or an output layer.
_FURTHER = re.compile(
    rf"base_model\.model\.(?P<module>[\w.-]{{1,{MAX_MODULE_NAME}}})\."
    r"(?:lora_embedding_(?P<part>[AB])|token_adapter\.trainable_tokens_delta)"
)

_WRAPPED = ".base_layer"

DTYPES = ("F64", "F32", "F16", "BF16")
"""The dtypes of weights, in safetensors' notation."""
LoraParameter = Literal["lora_A", "lora_B", "lora_magnitude_vector"]
FurtherParameter = Literal["lora_embedding_A", "lora_embedding_B", "trainable_tokens_delta"]
TokenId = Annotated[int, Field(ge=0)]
Rank = Annotated[int, Field(gt=0)]
Alpha = Annotated[float, Field(allow_inf_nan=False)]


class LoraSettings(BaseModel):
    """The settings of a LoRA adapter that determine its delta weights, under PEFT's names."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    peft_type: Literal["LORA"] = "LORA"
    """The PEFT method."""
    r: Rank = 8
    """The rank of modules that `rank_pattern` does not match."""
    lora_alpha: Alpha = 8
    """Alpha of modules that `alpha_pattern` does not match; scaling is alpha / r."""
    use_rslora: bool = False
    """Scaling is alpha / sqrt(r), not alpha / r (https://arxiv.org/abs/2312.03732)."""
    use_dora: bool = False
    """The adapter has magnitude vectors (https://arxiv.org/abs/2402.09353)."""
    rank_pattern: Annotated[dict[Pattern, Rank], BoundedPatterns] = {}
    """Module name or regular expression -> rank."""
    alpha_pattern: Annotated[dict[Pattern, Alpha], BoundedPatterns] = {}
    """Module name or regular expression -> alpha."""
    target_modules: tuple[str, ...] | str = ()
    """Names of the adapted modules, or one regular expression."""
    exclude_modules: tuple[str, ...] | str | None = None
    """Modules among them that are not adapted, or one regular expression."""
    layers_to_transform: tuple[int, ...] | int | None = None
    """Numbers of the layers that are adapted; all of them if not given."""
    layers_pattern: tuple[str, ...] | str | None = None
    """The name before a layer's number, or regular expressions for it."""
    target_parameters: tuple[str, ...] = ()
    """Names of the adapted parameters, or their last parts."""
    modules_to_save: Annotated[tuple[str, ...], Field(max_length=_MAX_NAMES)] = ()
    """Endings of the names of modules that are replaced as a whole."""
    trainable_token_indices: (
        tuple[TokenId, ...] | Annotated[dict[str, tuple[TokenId, ...]], Field(max_length=_MAX_NAMES)]
    ) = ()
    """The tokens whose rows are replaced: of the embedding, or by the endings of modules' names."""
    ensure_weight_tying: bool = False
    """What is done to the embedding is done to the output layer that shares its weights."""

    @property
    def expressions(self) -> tuple[str, ...]:
        """The regular expressions that decide which modules are adapted."""
        whole = (one for one in (self.target_modules, self.exclude_modules) if isinstance(one, str))
        pattern = self.layers_pattern or ()
        return (*whole, *((pattern,) if isinstance(pattern, str) else pattern))

    @property
    def max_rank(self) -> int:
        """The highest rank that the settings name."""
        return max((self.r, *self.rank_pattern.values()))

    def rank(self, module: str) -> int:
        """The rank of a module or of an adapted parameter (there of one expert), by its name in the base."""
        return self._ranks.get(self._pattern_name(module), self.r)

    def scaling(self, module: str) -> float:
        """The factor of lora_B @ lora_A in a module or in an adapted parameter."""
        alpha, rank = self._alphas.get(self._pattern_name(module), self.lora_alpha), self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, parameter: str) -> bool:
        """Whether `target_parameters` names a parameter, by its name in the base."""
        return bool(self.target_parameters) and not self._parameters.isdisjoint(name_endings(parameter))

    def saves(self, parameter: str) -> bool:
        """Whether a parameter belongs to a module that is replaced as a whole; PEFT compares endings, not names."""
        *path, _ = parameter.split(".")
        modules = (".".join(path[: end + 1]) for end in range(len(path)))
        return any(module.endswith(self.modules_to_save) for module in modules)

    def trained_tokens(self, module: str) -> tuple[int, ...]:
        """The tokens whose rows of a module are replaced."""
        tokens = self.trainable_token_indices
        if not isinstance(tokens, dict):
            return tokens
        return next((tokens[ending] for ending in tokens if module.endswith(ending)), ())

    def canonical(self) -> bytes:
        """A canonical encoding of the settings that determine the delta weights, for the digest."""
        fields = {"peft_type", "r", "lora_alpha", "use_rslora", "use_dora"}
        if self.target_parameters:  # they say which parameter a tensor belongs to
            fields.add("target_parameters")
        if self.modules_to_save:
            fields |= {"modules_to_save", "ensure_weight_tying"}
        if self.trainable_token_indices:
            fields.add("trainable_token_indices")
        patterns = {
            "rank_pattern": list(self.rank_pattern.items()),
            "alpha_pattern": list(self.alpha_pattern.items()),
        }
        return json.dumps(self.model_dump(include=fields) | patterns, sort_keys=True).encode()

    def _pattern_name(self, module: str) -> str:
        """What PEFT compares patterns with: the parameter's name where a module's weight is adapted as one."""
        return weight if self.targets(weight := f"{module}.weight") else module

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(self.target_parameters)

    @cached_property
    def _ranks(self) -> PatternTable[int]:
        return PatternTable(self.rank_pattern)

    @cached_property
    def _alphas(self) -> PatternTable[float]:
        return PatternTable(self.alpha_pattern)


@dataclass(frozen=True)
class AdapterConfig:
    """A parsed `adapter_config.json`.

    Attributes:
        settings: The settings that determine the delta weights.
        base_name: `base_model_name_or_path`: a hub id or a path.
        base_revision: `revision`: that of the base.
    """

    settings: LoraSettings
    base_name: str | None
    base_revision: str | None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the config of an adapter's folder.

        Raises:
            AdapterInvalidError: It is missing, too large or malformed.
            AdapterIncompatibleError: It describes a kind of adapter that cannot be served.
        """
        return cls.parse(read_bounded(folder / CONFIG_FILE, MAX_CONFIG_BYTES))

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Parses the content of an `adapter_config.json`; raises as `read` does."""
        refuse_lfs_pointer(CONFIG_FILE, text[:LFS_HEAD_BYTES])
        try:
            config = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _invalid("is not JSON") from error
        if not isinstance(config, dict):
            raise _invalid("is not a JSON object")
        if b"\\u" in text and _LONE_SURROGATE.search(json.dumps(config, ensure_ascii=False)):
            raise _invalid("holds text that is not valid Unicode")
        _refuse_unsupported(config)
        try:
            settings = LoraSettings.model_validate(_without_nulls(config))
        except ValidationError as error:
            raise _invalid(f"has a wrong value: {describe_validation(error)}") from error
        return cls(settings, _text(config, "base_model_name_or_path"), _text(config, "revision"))


def _without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in config.items() if value is not None and value != []}
    # PEFT holds sets, whose order in the file is arbitrary.
    for field in ("target_modules", "target_parameters", "modules_to_save"):
        names = fields.get(field)
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            fields[field] = tuple(sorted(names))
    return fields


def name_endings(name: str) -> Iterator[str]:
    """A name, and what follows each of its dots."""
    return (name.split(".", skipped)[-1] for skipped in range(name.count(".") + 1))


def _text(config: Mapping[str, Any], field: str) -> str | None:
    value = config.get(field)
    return value[:500] if isinstance(value, str) and value else None


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    if reason := _unsupported(config):
        raise AdapterIncompatibleError(
            f"The adapter cannot be served: {reason}.",
            hint="LoRA is served: plain, rank-stabilised (rsLoRA) or weight-decomposed (DoRA), and modules_to_save.",
        )


def _unsupported(config: Mapping[str, Any]) -> str | None:
    kind, task = (str(config.get(field))[:40] for field in ("peft_type", "task_type"))
    if kind != "LORA":
        return f"its kind (peft_type) is {kind}, not LORA"
    if task not in ("None", "CAUSAL_LM"):
        return f"it was made for the task {task}, not for generating text (CAUSAL_LM)"
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(_BASE_CHANGING_INITS):
        return f"its training changed the base's weights too (init_lora_weights={init[:40]!r})"
    return next((why for field, why in _UNSUPPORTED.items() if config.get(field)), None)


def parse_tensors(header: Mapping[str, TensorInfo]) -> dict[str, dict[LoraParameter, TensorInfo]]:
    """Groups an adapter's tensors by module.

    Args:
        header: Tensor name -> tensor, as `read_header` returns it.

    Returns:
        Module name -> LoRA parameter -> tensor; without copies of the base's weights and `further_tensors`.

    Raises:
        AdapterIncompatibleError: A tensor does not belong to LoRA on a linear layer.
    """
    modules: dict[str, dict[LoraParameter, TensorInfo]] = {}
    copies = set(copied_weights(header).values())
    for name, info in header.items():
        if name not in copies and not _FURTHER.fullmatch(name):
            module, part = parse_tensor_name(name)
            modules.setdefault(module, {})[part] = info
    return modules


def parameter_owner(module: str) -> str:
    """The module that holds an adapted parameter: PEFT wraps it once for each parameter, one wrapper in the other."""
    while module.endswith(_WRAPPED):
        module = module.removesuffix(_WRAPPED)
    return module


def copied_weights(header: Mapping[str, TensorInfo]) -> dict[str, str]:
    """The weights of the base in an adapter's file.

    Returns:
        The name of the base's parameter -> the name of the tensor.
    """
    matches = ((name, _COPY.fullmatch(name)) for name in header if "lora_" not in name)
    return {
        f"{match['module'].removesuffix('.base_layer')}.{match['parameter']}": name
        for name, match in matches
        if match and "modules_to_save" not in name
    }


def saved_weights(header: Mapping[str, TensorInfo], settings: LoraSettings) -> dict[str, str]:
    """Those of `copied_weights` that replace a module of the base (`modules_to_save`).

    With `ensure_weight_tying` the output layer is in the file, but not in the config.
    """
    if not settings.modules_to_save:
        return {}
    return {
        parameter: name
        for parameter, name in copied_weights(header).items()
        if ".base_layer." not in name and (settings.ensure_weight_tying or settings.saves(parameter))
    }


def further_names(header: Mapping[str, TensorInfo]) -> dict[str, tuple[str, FurtherParameter]]:
    """The tensors of LoRA on embeddings and of single rows: name -> module and parameter."""
    parts: dict[str | None, FurtherParameter] = {"A": "lora_embedding_A", "B": "lora_embedding_B"}
    matches = ((name, _FURTHER.fullmatch(name)) for name in header)
    return {
        name: (match["module"], parts.get(match["part"], "trainable_tokens_delta"))
        for name, match in matches
        if match
    }


def further_tensors(header: Mapping[str, TensorInfo]) -> dict[str, dict[FurtherParameter, TensorInfo]]:
    """The same by module: module name -> parameter -> tensor."""
    modules: dict[str, dict[FurtherParameter, TensorInfo]] = {}
    for name, (module, part) in further_names(header).items():
        modules.setdefault(module, {})[part] = header[name]
    return modules


def adapter_digest(settings: LoraSettings, weights: Path) -> str:
    """The sha256 of an adapter's settings (`LoraSettings.canonical`) and of its weights' bytes."""
    digest = hashlib.sha256(settings.canonical() + b"\n")
    with weights.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def parse_tensor_name(name: str) -> tuple[str, LoraParameter]:
    """Splits `base_model.model.<module>.lora_A.weight` into module and LoRA parameter.

    Raises:
        AdapterIncompatibleError: The name has another pattern.
    """
    match = _TENSOR.fullmatch(name)
    if match is None:
        kind, hint = describe_tensor(name)
        raise AdapterIncompatibleError(
            f"The adapter holds the tensor {name[:200]!r}, which is {kind}.", hint=hint
        )
    part: LoraParameter = "lora_A" if match["part"] == "lora_A" else "lora_B"
    return match["module"], part if match["part"] else "lora_magnitude_vector"


def _invalid(reason: str) -> AdapterInvalidError:
    return AdapterInvalidError(
        f"{CONFIG_FILE} {reason}.", hint="Copy the adapter's folder again; PEFT's save_pretrained writes it."
    )
