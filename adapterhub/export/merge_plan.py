"""What a merge writes: every tensor, where it comes from and what changes it, and in which file it goes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from adapterhub.base.fingerprint import weight_files
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.base.parameters import ExpertPiece
from adapterhub.errors import ExportError
from adapterhub.export.adapter_part import AdapterPart, AdapterSum
from adapterhub.export.expert_change import ExpertReader, ExpertsPart
from adapterhub.export.round_trip import RoundTrip, quantized_modules
from adapterhub.export.weight_change import WeightChange
from adapterhub.export.weight_files import DTYPES, OutputTensor
from adapterhub.peft_format.safetensors_header import DTYPE_BYTES, TensorInfo, read_header

INDEX_FILE = "model.safetensors.index.json"
_SIZE = re.compile(r"(?=[^1-9]*[1-9])\d{1,9}(\.\d{1,9})?\s?[KMGT]B", re.ASCII | re.IGNORECASE)
_MERGED_DTYPES = ("BF16", "F16", "F32")
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class MergePlan:
    """The tensors of a merged model; its properties raise what keeps them from being written.

    Attributes:
        base: The base's folder.
        adapters: What is merged into it.
        dtype: The dtype of all weights in floating point, in safetensors' notation; None keeps each one's.
        round_trip: How training stored the base, if its weights are to be as they were there.
        max_shard_size: Bytes of a file, or a text such as "5GB"; None keeps the base's files.
    """

    base: Path
    adapters: AdapterSum
    dtype: str | None = None
    round_trip: RoundTrip | None = None
    max_shard_size: int | str | None = None

    @cached_property
    def shards(self) -> dict[str, tuple[OutputTensor, ...]]:
        """File -> its tensors in the order of their bytes."""
        by_shard = {shard.name: self._of_shard(shard) for shard in weight_files(self.base)}
        if self.max_shard_size is None:
            return by_shard
        return _split([tensor for tensors in by_shard.values() for tensor in tensors], self.max_shard_size)

    @property
    def tensors(self) -> Iterator[OutputTensor]:
        """All tensors."""
        return (tensor for tensors in self.shards.values() for tensor in tensors)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of the weights that adapters change."""
        return tuple(sorted({tensor.dtype for tensor in self.tensors if tensor.change}))

    @cached_property
    def untied(self) -> tuple[str, ...]:
        """Weights that share the embedding's values in the base, and are written on their own."""
        head = f"{self.layers.head}.weight"
        tied = self.tied_with(head)
        return () if tied is None or self.changes.get(head) == self.changes.get(tied) else (head,)

    def files(self) -> dict[str, bytes]:
        """The base's files whose content the plan changes: `config.json` and the index of the shards."""
        files = {}
        if self.dtype or self.untied:
            files["config.json"] = self._config()
        if len(self.shards) > 1:
            files[INDEX_FILE] = self._index()
        return files

    def _index(self) -> bytes:
        index = self.base / INDEX_FILE
        places = {tensor.name: file for file, tensors in self.shards.items() for tensor in tensors}
        if index.is_file() and json.loads(content := index.read_bytes())["weight_map"] == places:
            return content
        total = sum(tensor.size_bytes for tensor in self.tensors)
        return _json({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})

    def _config(self) -> bytes:
        config = json.loads((self.base / "config.json").read_bytes())
        if self.dtype:
            name = "torch_dtype" if "torch_dtype" in config else "dtype"
            config[name] = _NAMES[self.dtype]
        for part in _with_nested(config):
            if self.dtype:
                part.update({name: _NAMES[self.dtype] for name in ("dtype", "torch_dtype") if part.get(name)})
            if self.untied and (part is config or "tie_word_embeddings" in part):
                part["tie_word_embeddings"] = False
        return _json(config)

    def _of_shard(self, shard: Path) -> tuple[OutputTensor, ...]:
        written = []
        for name, info in read_header(shard).items():
            written.append(self._output(name, shard, info))
            written += (self._output(added, shard, info) for added in self._added.get(name, ()))
        if not self._added and self.dtype is None:
            return tuple(written)
        return tuple(sorted(written, key=lambda tensor: -DTYPE_BYTES[tensor.dtype]))

    def _output(self, name: str, file: Path, info: TensorInfo) -> OutputTensor:
        parameter = self._parameters_of_tensors.get(name)
        module, _, own_name = (parameter or "").rpartition(".")
        change = self._change_of(name, parameter) if parameter else None
        round_trip = self.round_trip if parameter in self._round_tripped else None
        if (change or round_trip) and info.dtype not in _MERGED_DTYPES:
            raise ExportError(
                f"The base's weight {name!r} is stored as {info.dtype}, which cannot take an adapter.",
                hint="Merge into the base's 16-bit weights, not into a quantised copy.",
            )
        dtype = self.dtype if self.dtype and info.dtype in DTYPES else info.dtype
        return OutputTensor(
            name,
            file,
            info,
            dtype,
            change,
            round_trip,
            bool(module in self.layers.transposed and own_name == "weight" and (change or round_trip)),
        )

    @cached_property
    def changes(self) -> dict[str, WeightChange]:
        """The model's name of a parameter -> what changes it."""
        parts: dict[str, list[tuple[AdapterPart, str]]] = {}
        for part in self.adapters.parts:
            for name, module in part.module_names(self.layers).items():
                for parameter in self._parameters(part, module, name):
                    parts.setdefault(parameter, []).append((part, module))
        return {name: WeightChange(name.rpartition(".")[2], tuple(found)) for name, found in parts.items()}

    def _parameters(self, part: AdapterPart, module: str, name: str) -> tuple[str, ...]:
        """The parameters that an adapter changes of a module, by its name there and in the model."""
        if name in self.layers.parameter_shapes or ExpertPiece.of_key(name):
            return (name,)
        return tuple(f"{name}.{own_name}" for own_name in part.info.further.saved.get(module, ("weight",)))

    @cached_property
    def _round_tripped(self) -> frozenset[str]:
        if self.round_trip is None:
            return frozenset()
        # They have other names in the whole model where training loads the decoder alone.
        modules = filter(None, map(self.layers.find, quantized_modules(self.base)))
        return frozenset(f"{module}.weight" for module in modules)

    @cached_property
    def _parameters_of_tensors(self) -> dict[str, str]:
        """The name of a tensor in the files -> the parameter that it is, for those that are not only copied."""
        wanted = dict.fromkeys((*self.changes, *sorted(self._round_tripped)))
        pieces = {
            tensor: name
            for tensor, piece in self._pieces.items()
            for name in (piece.parameter, piece.key)
            if name in wanted
        }
        whole = wanted.keys() - set(pieces.values())
        found = {name: self._tensor_of(name) for name in wanted if name in whole}
        return {tensor: name for name, tensor in found.items() if tensor} | pieces

    def _change_of(self, tensor: str, parameter: str) -> WeightChange | None:
        change, shape = self.changes.get(parameter), self.layers.parameter_shapes.get(parameter)
        piece = ExpertPiece.of_key(parameter)
        if piece and piece.parameter in self.changes:
            raise ExportError(
                f"The adapters hold what they change about {piece.parameter!r} in different ways.",
                hint="Load each on the base with PEFT and save it again, which joins the weights of single experts.",
            )
        if change is None or shape is None or shape.experts == 1:
            return change
        part = ExpertsPart(parameter, shape, self._pieces.get(tensor), self._expert_reader)
        return replace(change, experts=part)

    @cached_property
    def _pieces(self) -> dict[str, ExpertPiece]:
        """The tensors in the files that are single experts' parts of a parameter."""
        return self.layers.pieces_in(self._tensors)

    @cached_property
    def _expert_reader(self) -> ExpertReader:
        return ExpertReader()

    def _tensor_of(self, parameter: str) -> str | None:
        """The tensor of a parameter; None if another one's stands for both."""
        tensor = self._in_files.get(parameter)
        head = f"{self.layers.head}.weight"
        pair = (head, self.tied_with(head))
        if parameter in pair and None not in pair:
            return tensor or (parameter if self.untied else None)
        if parameter in self.layers.tied or parameter in self.layers.tied.values():
            raise ExportError(
                f"The base shares {parameter!r} with other layers, which a merge would change too.",
                hint="Train without it.",
            )
        if tensor is None:
            raise ExportError(
                f"The base's files have no weight that is {parameter!r} as it stands.",
                hint="transformers splits or joins weights when it loads them; merge with PEFT's merge_and_unload.",
            )
        return tensor

    def tied_with(self, parameter: str) -> str | None:
        """The parameter that an output layer shares its weight with in the base."""
        return self.layers.tied.get(parameter) if parameter == f"{self.layers.head}.weight" else None

    @cached_property
    def _added(self) -> dict[str, list[str]]:
        """A tensor in the files -> further tensors to write of its values: what tied weights lack in the files."""
        added: dict[str, list[str]] = {}
        for parameter in self.untied:
            pair = (parameter, self.tied_with(parameter) or parameter)
            stored = [self._in_files[name] for name in pair if name in self._in_files]
            if not stored:
                raise ExportError(
                    f"The base's files have no weight that is {parameter!r}.", hint="Download it again."
                )
            missing = [name for name in pair if name not in self._in_files]
            if self.layers.parameters_in([*self._in_files.values(), *missing]).keys() < set(pair):
                raise ExportError(
                    f"{parameter!r} cannot be untied in the base's files.", hint="Train without it."
                )
            added.setdefault(stored[0], []).extend(missing)
        return {tensor: names for tensor, names in added.items() if names}

    @cached_property
    def _in_files(self) -> dict[str, str]:
        """Parameter -> tensor in the base's files."""
        return self.layers.parameters_in(self._tensors)

    @cached_property
    def _tensors(self) -> tuple[str, ...]:
        return tuple(name for shard in weight_files(self.base) for name in read_header(shard))

    @cached_property
    def layers(self) -> LinearLayers:
        """The linear layers of everything that the base holds."""
        layers = LinearLayers.of_folder(self.base, whole=True)
        if layers is None:
            raise ExportError(
                "The base's model is known to code in its folder only, which is not run.",
                hint="Merge with PEFT's merge_and_unload.",
            )
        return layers


def _split(tensors: list[OutputTensor], max_shard_size: int | str) -> dict[str, tuple[OutputTensor, ...]]:
    """The files that `save_pretrained` of transformers would write."""
    from huggingface_hub import split_state_dict_into_shards_factory

    if not (isinstance(max_shard_size, int) and max_shard_size > 0) and not _SIZE.fullmatch(
        str(max_shard_size)
    ):
        raise ExportError(f"{max_shard_size!r} is no size of a file.", hint="Write it as 5GB or 500MB.")
    by_name = {tensor.name: tensor for tensor in tensors}
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda tensor: tensor.size_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    return {
        file: tuple(sorted((by_name[name] for name in names), key=lambda tensor: -DTYPE_BYTES[tensor.dtype]))
        for file, names in split.filename_to_tensors.items()
    }


def _with_nested(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A config and the configs of its parts."""
    if isinstance(config, dict):
        yield config
        for value in config.values():
            yield from _with_nested(value)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
