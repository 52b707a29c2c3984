"""The layers of a base under their names in transformers' model, and the other names that they go by.

A base's files may name a layer otherwise than the model does, and so may an adapter that was trained with an older
transformers. transformers' own conversions (`transformers.conversion_mapping`, which PEFT uses too) translate both.
A decoder inside a vision-language model has other names than the same decoder alone; an adapter may have either.
A base on disk is built from its `config.json` on the meta device: no weight is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base.auto_class import text_class, whole_class
from adapterhub.base.linear_modules import linear_shape
from adapterhub.base.parameters import ExpertPiece, ParameterShape, parameter_shapes
from adapterhub.base.replaceable import embedding_shape, replaceable_parameters
from adapterhub.errors import ConfigError
from adapterhub.peft_format.config import LoraSettings, parameter_owner

if TYPE_CHECKING:
    from transformers.core_model_loading import WeightConverter, WeightRenaming

_CONFIG = "config.json"
_AROUND_DECODER = frozenset({"model", "language_model", "text_model"})
"""What transformers calls the modules around a decoder's layers, alone and inside a vision-language model."""


@dataclass(frozen=True)
class LinearLayers:
    """The linear layers of a base; construct it with `of_model` or `of_folder`.

    Attributes:
        shapes: Module name in the model -> (out_features, in_features).
        beside: The same for layers of the checkpoint that no text passes: those of a vision tower. A model of the
            decoder alone lacks them, and then they have their names in the whole model.
        transposed: Modules whose weight is stored as (in_features, out_features), as GPT-2's.
        head: The output layer; None if the model has none.
        tied: Parameter -> the parameter before it that it shares its values with.
        parameters: The names of all parameters and buffers.
        prefix: transformers' `base_model_prefix`, which the names in a base's files may lack.
        embeddings: Embedding -> (num_embeddings, embedding_dim).
        replaceable: The modules that an adapter may replace, from `replaceable_parameters`: module -> parameter ->
            shape.
        parameter_shapes: The bare parameters that an adapter may change, from the function of this name.
    """

    shapes: Mapping[str, tuple[int, int]]
    beside: Mapping[str, tuple[int, int]]
    transposed: frozenset[str]
    head: str | None
    tied: Mapping[str, str]
    parameters: frozenset[str]
    prefix: str
    _renamings: tuple[WeightRenaming, ...]
    _converters: tuple[WeightConverter, ...]
    embeddings: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    replaceable: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    parameter_shapes: Mapping[str, ParameterShape] = field(default_factory=dict)

    @classmethod
    def of_model(cls, model: Any, folder: Path | None = None) -> LinearLayers:
        """The linear layers of a transformers model, before any of them is wrapped.

        Args:
            model: The model.
            folder: What it was loaded from, which may hold more than the model has; if not given it does not.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming
        from transformers.pytorch_utils import Conv1D

        modules = dict(model.named_modules())
        head, conversions = model.get_output_embeddings(), get_model_conversion_mapping(model)
        linear = {name: shape for name, module in modules.items() if (shape := linear_shape(module))}
        whole = cls.of_folder(folder, whole=True) if folder and _is_part(model, folder) else None
        beside = whole.beside if whole else _beside_the_decoder(model, linear)
        return cls(
            shapes={name: shape for name, shape in linear.items() if name not in beside},
            beside=beside,
            transposed=frozenset(name for name, module in modules.items() if isinstance(module, Conv1D)),
            head=next((name for name, module in modules.items() if module is head), None),
            tied=_tied(model),
            # Not `state_dict`, with which bitsandbytes undoes its packing of the weights.
            parameters=frozenset(name for values in _values(model) for name, _ in values),
            parameter_shapes=parameter_shapes(model),
            prefix=model.base_model_prefix,
            _renamings=tuple(one for one in conversions if isinstance(one, WeightRenaming)),
            _converters=tuple(one for one in conversions if isinstance(one, WeightConverter)),
            embeddings={
                name: shape for name, module in modules.items() if (shape := embedding_shape(module))
            },
            replaceable={
                name: shapes
                for name, module in modules.items()
                if (shapes := replaceable_parameters(module, linear_shape(module)))
            },
        )

    @classmethod
    def of_folder(cls, folder: str | Path, *, whole: bool = False) -> LinearLayers | None:
        """The linear layers of a base on disk; kept for the last few bases.

        Args:
            folder: Holds `config.json`.
            whole: Of the model with everything that the checkpoint holds, where what is served is its decoder alone.

        Returns:
            None if only Python code in the folder knows the model, which is not run.

        Raises:
            ConfigError: The folder holds no causal language model that transformers knows.
        """
        path = Path(folder) / _CONFIG
        try:
            stamp = path.stat()
        except OSError as error:
            raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
        return _of_folder(path.parent, (stamp.st_size, stamp.st_mtime_ns, stamp.st_ino), whole)

    def find(self, module: str) -> str | None:
        """The model's name of a layer that an adapter or a base's file names; None if it is no linear layer."""
        if module in self.shapes or module in self.beside:
            return module
        renamed, converter = self._renamed(f"{module}.weight")
        name = renamed.removesuffix(".weight")
        if converter is None and (name in self.shapes or name in self.beside):
            return name
        return self._in_other_form.get(_in_decoder(module) or "")

    @cached_property
    def _in_other_form(self) -> dict[str, str]:
        """A layer's name within the decoder -> its name in the model."""
        return {inner: name for name in self.shapes if (inner := _in_decoder(name))}

    def find_module(self, module: str) -> str:
        """The model's name of any module that an adapter names; the name itself if there is none."""
        name = self.find_parameter(f"{module}.weight").removesuffix(".weight")
        if name in self.replaceable or not (inner := _in_decoder(name)):
            return name
        return next((one for one in self.replaceable if _in_decoder(one) == inner), name)

    def find_parameter(self, name: str) -> str:
        """The model's name of a parameter that an adapter names; the name itself if there is none."""
        renamed, converter = self._renamed(name)
        return renamed if name not in self.parameters and converter is None else name

    def find_adapted(self, module: str, settings: LoraSettings) -> tuple[str, str] | None:
        """The parameter of a mixture that an adapter's module stands for.

        PEFT wraps a module once for each of its parameters that `target_parameters` names, in their order, so that the
        weights for the last one go by the module's name, and those for the one before by `<module>.base_layer`.

        Args:
            module: The module as the adapter names it.
            settings: The adapter's settings.

        Returns:
            The parameter's name in the model, and with the adapter's name of the module; None if there is none.
        """
        owner = parameter_owner(module)
        depth = module.count(".base_layer") - owner.count(".base_layer")
        for leaf in {target.rpartition(".")[2] for target in settings.target_parameters}:
            name = self._owner(owner, leaf)
            adapted = [leaf for leaf in self._leaves.get(name, ()) if settings.targets(f"{owner}.{leaf}")]
            if depth < len(adapted):
                found = adapted[-1 - depth]
                return f"{name}.{found}", f"{owner}.{found}"
        return None

    def _owner(self, module: str, leaf: str) -> str:
        """The model's name of a module that has a parameter of this name."""
        name = self.find_parameter(f"{module}.{leaf}").rpartition(".")[0]
        if name in self._leaves:
            return name
        inner = _in_decoder(module)
        return next((one for one in self._leaves if inner and _in_decoder(one) == inner), name)

    @cached_property
    def _leaves(self) -> Mapping[str, Sequence[str]]:
        """Module -> the names of its bare parameters, in their order."""
        leaves: dict[str, list[str]] = {}
        for parameter in self.parameter_shapes:
            owner, _, leaf = parameter.rpartition(".")
            leaves.setdefault(owner, []).append(leaf)
        return leaves

    def find_before_joining(self, module: str) -> str | None:
        """The model's name of an expert's layer or a router that was a linear layer of its own in transformers 4.

        Returns:
            The parameter that it has become, or for an expert the key of its part; None if no such one is served.
        """
        weight = f"{module}.weight"
        piece = self.pieces_in([weight]).get(weight)
        parameter = piece.parameter if piece else self.find_parameter(weight)
        shape = self.parameter_shapes.get(parameter)
        if shape is None or not shape.served or (piece is None and shape.experts > 1):
            return None
        if piece and piece.expert >= shape.experts:
            return None
        return piece.key if piece else parameter

    def parameters_in(self, tensors: Iterable[str]) -> dict[str, str]:
        """Which tensors of a base's files are parameters of the model as they stand.

        Args:
            tensors: The names in the files.

        Returns:
            Parameter -> tensor, as transformers loads them; without those that it splits or joins.
        """
        found = {}
        for tensor in tensors:
            name, converter = self._renamed(tensor, self._known)
            if name not in self.parameters and tensor in self.parameters:
                name, converter = tensor, None
            if converter is None and name in self.parameters:
                found[name] = tensor
        return found

    def pieces_in(self, tensors: Iterable[str]) -> dict[str, ExpertPiece]:
        """Which tensors of a base's files are single experts' parts of a parameter that holds all of them.

        Args:
            tensors: The names in the files.

        Returns:
            Tensor -> part; without those that transformers joins in another way than by stacking experts, each of which
            may be a few matrices one above the other.
        """
        from transformers.core_model_loading import apply_renamings

        found = {}
        for tensor in tensors:
            name, pattern = self._renamed(tensor, self._known)
            patterns = self._stacked.get(pattern or "")
            if patterns and name in self.parameter_shapes:
                matrix = re.escape(pattern or "").replace(r"\*", r"(\d+)")
                expert = re.search(matrix, apply_renamings(tensor, list(self._renamings)))
                if expert:
                    number, part = int(expert[1]), patterns.index(pattern or "")
                    found[tensor] = ExpertPiece(name, number, part, len(patterns))
        return found

    @cached_property
    def _stacked(self) -> dict[str, Sequence[str]]:
        """The pattern of a tensor of each expert -> the patterns of all parts of an expert's matrix, in their order."""
        from transformers.core_model_loading import Concatenate, MergeModulelist

        stacked = {}
        for converter in self._converters:
            stack, *further = converter.operations
            if type(stack) is not MergeModulelist or stack.dim != 0:
                continue
            parts = [one.dim for one in further if type(one) is Concatenate]
            if len(parts) == len(further) and parts in ([], [1]):
                stacked.update(dict.fromkeys(converter.source_patterns, converter.source_patterns))
        return stacked

    @cached_property
    def _known(self) -> dict[str, bool]:
        return dict.fromkeys(self.parameters, True)

    def _renamed(self, tensor: str, known: Mapping[str, bool] | None = None) -> tuple[str, str | None]:
        """A tensor's name in the model; its prefix is added or removed where that gives a known name."""
        from transformers.core_model_loading import rename_source_key

        prefix = (self.prefix, known) if known else (None, None)
        renamed: tuple[str, str | None] = rename_source_key(
            tensor, list(self._renamings), list(self._converters), *prefix
        )
        return renamed


def _beside_the_decoder(model: Any, linear: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The layers of a model with several parts that are neither in its decoder nor its head."""
    if model.config.get_text_config() is model.config:
        return {}
    passed = {id(module) for module in (*model.get_decoder().modules(), model.get_output_embeddings())}
    return {name: shape for name, shape in linear.items() if id(model.get_submodule(name)) not in passed}


def _in_decoder(name: str) -> str | None:
    """A layer's name without those of the modules around the decoder; None for a layer of the bare decoder."""
    parts = name.split(".")
    around = next((n for n, part in enumerate(parts) if part not in _AROUND_DECODER), 0)
    return ".".join(parts[around:]) if around or len(parts) == 1 else None


def _values(model: Any) -> tuple[Iterable[tuple[str, Any]], ...]:
    return model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)


def _tied(model: Any) -> dict[str, str]:
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        original = first.setdefault(id(parameter), name)
        if original != name:
            tied[name] = original
    return tied


@lru_cache(maxsize=8)
def _of_folder(folder: Path, stamp: tuple[int, ...], whole: bool) -> LinearLayers | None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = _without_values(whole_class(config) if whole else text_class(config), config)
    except Exception as error:  # a model's code raises anything on a config that is not valid
        if _has_own_code(folder):
            return None
        raise ConfigError(
            f"{str(folder)!r} is not a base that can be read: {error}",
            hint="The folder must hold a causal language model that the installed transformers knows.",
        ) from error
    return LinearLayers.of_model(model, None if whole else folder)


def _without_values(auto_class: Any, config: Any) -> Any:
    import torch

    with torch.device("meta"):
        # Another dtype would be that of all threads meanwhile, also of an engine that computes.
        return auto_class.from_config(config, dtype=torch.get_default_dtype(), trust_remote_code=False)


def _is_part(model: Any, folder: Path) -> bool:
    """Whether a model is of another type than the checkpoint that it was loaded from."""
    return bool(_config(folder).get("model_type") != model.config.model_type)


def _has_own_code(folder: Path) -> bool:
    return "auto_map" in _config(folder)


def _config(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / _CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
