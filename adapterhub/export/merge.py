"""Merging an adapter into its base's 16-bit weights on disk, written as a standalone model.

`W + scaling * B @ A` is computed in float32 and rounded once, one tensor at a time. Shapes and dtypes stay, so every
shard keeps its header byte for byte and its tensors are streamed in the same order: memory holds one tensor, whatever
the size of the model. No loaded model is used. Merging into 4-bit weights would round away a light fine-tune.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from io import BufferedReader, BufferedWriter
from pathlib import Path

import torch

from adapterhub._files import new_folder, os_errors_as, user_path
from adapterhub.base.fingerprint import BaseFingerprint, weight_files
from adapterhub.base.fit import check_against_base, check_fit
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.base.locating import is_local_base
from adapterhub.errors import AdapterIncompatibleError, ExportError
from adapterhub.export.model_card import model_card
from adapterhub.export.prompt_files import prompt_files
from adapterhub.peft_format.checks import AdapterInfo, check_digest, inspect_adapter
from adapterhub.peft_format.config import WEIGHTS_FILE, LoraParameter, parse_tensors
from adapterhub.peft_format.safetensors_header import TensorInfo, read_header
from adapterhub.registry.cards import CARD_FILE, AdapterCard
from adapterhub.registry.prompt_files import prompt_profile_of

LINEAGE_FILE = "merge.json"
"""The file with the `MergeReport`, next to the merged weights."""

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_MERGED_DTYPES = ("BF16", "F16", "F32")
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*")
_NOT_COPIED = ("*.bin.index.json", CARD_FILE, LINEAGE_FILE)
_CHUNK_BYTES = 8 * 2**20
_BLOCK_ELEMENTS = 2**20


@dataclass(frozen=True)
class MergeReport:
    """The lineage of a merged model; written next to it as `merge.json`.

    Attributes:
        base: The base's name.
        base_digest: Its fingerprint's digest.
        adapter: `name@version`; the folder's name if it has no card.
        adapter_digest: The adapter's digest.
        method: The arithmetic.
        dtypes: Dtypes of the merged weights, in safetensors' notation.
        merged: Number of weights that the adapter changed.
        tensors: Number of weights in all.
        size_bytes: Size of all shards.
    """

    base: str
    base_digest: str
    adapter: str
    adapter_digest: str
    method: str
    dtypes: tuple[str, ...]
    merged: int
    tensors: int
    size_bytes: int


def merge_adapter(
    base_folder: str | Path,
    adapter_folder: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merges an adapter into its base's weights on disk, as a model that transformers loads without PEFT.

    Config, tokenizer, chat template and generation config are the base's but where the adapter's prompt profile and
    tokenizer files differ; tied embeddings stay tied.

    Args:
        base_folder: The base in 16 or 32 bits: `config.json` and safetensors, in one file or in shards.
        adapter_folder: A PEFT folder, or a version's folder in a registry, whose card is used for the lineage.
        out: The new folder; it must not exist, or be empty.
        force: Also merge into a base other than the one on the adapter's card, if the shapes fit.
        progress: Called with the bytes of weights written so far and in total.

    Raises:
        ExportError: `out` is not empty, the base is quantised, a module has no untied weight in the base, a merged
            weight is not finite, or writing failed. Then `out` is not created.
        AdapterInvalidError: The adapter's files are damaged, or not those that were registered.
        AdapterIncompatibleError: The adapter is of a kind that cannot be merged, or for another base.
        ConfigError: The base cannot be read.
    """
    out = user_path(out, ExportError)
    if not _is_free(out):
        raise ExportError(
            f"{str(out)!r} exists and is not empty.", hint="Give a folder that does not exist yet."
        )
    merge = _Merge(Path(base_folder), Path(adapter_folder), inspect_adapter(Path(adapter_folder)), force)
    merge.check()
    what = f"The merged model, {merge.size_bytes:,} bytes, could not be written to {str(out)!r}"
    with os_errors_as(ExportError, what), new_folder(out) as temporary:
        merge.write(temporary, progress or (lambda written, total: None))
    return merge.report


def _is_free(out: Path) -> bool:
    with os_errors_as(ExportError, f"{str(out)!r} cannot be used"):
        return not out.exists() or (out.is_dir() and not any(out.iterdir()))


@dataclass(frozen=True)
class _Merge:
    """One merge: `check` raises before `write` writes anything."""

    base: Path
    adapter: Path
    info: AdapterInfo
    force: bool

    def check(self) -> None:
        if self.card:
            check_digest(self.card.ref, self.card.digest, self.info.digest)
        check_against_base(self.info, self.adapter, self.base)
        _ = self.prompt_files  # refuses a tokenizer that is damaged or does not fit
        recorded = self.card.base.fingerprint if self.card else None
        difference = recorded.mismatch(self.fingerprint) if recorded else None
        if difference and not self.force:
            raise AdapterIncompatibleError(
                f"The adapter was trained on another base: {difference}.",
                hint="Give the 16-bit weights of the base that it was trained on; force=True merges anyway.",
            )
        for name, info in self.tensors.items():
            if name in self.targets and info.dtype not in _MERGED_DTYPES:
                raise ExportError(
                    f"The base's weight {name!r} is stored as {info.dtype}, which cannot take an adapter.",
                    hint="Merge into the base's 16-bit weights, not into a quantised copy.",
                )

    def write(self, out: Path, progress: Callable[[int, int], None]) -> None:
        written = 0
        for shard in self.shards:
            with shard.open("rb") as source, (out / shard.name).open("xb") as target:
                for size in self._write_shard(source, target, read_header(shard)):
                    written += size
                    progress(written, self.size_bytes)
        for path in _files_to_copy(self.base):
            shutil.copyfile(path, out / path.name)
        for name, content in self.prompt_files.items():
            (out / name).write_bytes(content)
        (out / LINEAGE_FILE).write_text(json.dumps(asdict(self.report), indent=2) + "\n", encoding="utf-8")
        (out / "README.md").write_text(self._model_card(), encoding="utf-8")

    def _model_card(self) -> str:
        report = self.report
        details = (
            f"{report.merged} of {report.tensors} weights carry the adapter ({report.method}, rounded once to "
            f"{', '.join(report.dtypes)}). `{LINEAGE_FILE}` has the digests."
        )
        return model_card(report.base, self.base, report.adapter, self.card, details)

    def _write_shard(
        self, source: BufferedReader, target: BufferedWriter, header: Mapping[str, TensorInfo]
    ) -> Iterator[int]:
        """Writes one shard, yielding the number of bytes of each write."""
        yield from _copy(source, target, 0, 8 + int.from_bytes(source.read(8), "little"))
        with (self.adapter / WEIGHTS_FILE).open("rb") as adapter:
            for name, info in header.items():
                if module := self.targets.get(name):
                    weight = self._merged(module, _read(source, info), adapter)
                    yield target.write(weight.view(torch.uint8).numpy().data)
                else:
                    yield from _copy(source, target, info.start, info.end)

    def _merged(self, module: str, weight: torch.Tensor, adapter: BufferedReader) -> torch.Tensor:
        parts = {part: _read(adapter, info).float() for part, info in self.parts[module].items()}
        scaling, magnitudes = self.info.config.settings.scaling(module), parts.get("lora_magnitude_vector")
        rows = weight.T if self.names[module] in self.layers.transposed else weight
        # In blocks of rows, to bound the size of the float32 intermediates.
        count = max(1, _BLOCK_ELEMENTS // rows.shape[1])
        for block in (slice(start, start + count) for start in range(0, len(rows), count)):
            delta = (parts["lora_B"][block] @ parts["lora_A"]).mul_(scaling)
            _merge_rows(rows[block], delta, None if magnitudes is None else magnitudes[block])
            if not rows[block].isfinite().all():
                raise ExportError(
                    f"The merged weight of {module!r} does not fit into {weight.dtype}.",
                    hint="The adapter's weights are too large; it may have diverged in training.",
                )
        return weight

    @cached_property
    def card(self) -> AdapterCard | None:
        return AdapterCard.of_folder(self.adapter)

    @cached_property
    def prompt_files(self) -> dict[str, bytes]:
        profile = prompt_profile_of(self.adapter, self.base, force=self.force)
        return prompt_files(self.base, self.adapter, profile)

    @cached_property
    def fingerprint(self) -> BaseFingerprint:
        return BaseFingerprint.of(self.base)

    @cached_property
    def shards(self) -> list[Path]:
        return weight_files(self.base)

    @cached_property
    def size_bytes(self) -> int:
        return sum(shard.stat().st_size for shard in self.shards)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        return {name: info for shard in self.shards for name, info in read_header(shard).items()}

    @cached_property
    def parts(self) -> dict[str, dict[LoraParameter, TensorInfo]]:
        return parse_tensors(read_header(self.adapter / WEIGHTS_FILE))

    @cached_property
    def targets(self) -> dict[str, str]:
        """Weight name in the base -> the adapter's module."""
        in_files = self.layers.parameters_in(self.tensors)
        return {self._weight_of(module, in_files): module for module in self.info.modules}

    def _weight_of(self, module: str, in_files: Mapping[str, str]) -> str:
        parameter = f"{self.names[module]}.weight"
        if parameter in self.shared:
            raise ExportError(
                f"The base has no untied weight for {module!r}.",
                hint="A merge into an output head with tied weights would change the embedding too; train without it.",
            )
        if parameter not in in_files:
            raise ExportError(
                f"The base's files have no weight that is {module!r} as it stands.",
                hint="transformers splits or joins weights when it loads them; merge with PEFT's merge_and_unload.",
            )
        return in_files[parameter]

    @cached_property
    def layers(self) -> LinearLayers:
        layers = LinearLayers.of_folder(self.base)
        if layers is None:
            raise ExportError(
                "The base's model is known to code in its folder only, which is not run.",
                hint="Merge with PEFT's merge_and_unload.",
            )
        return layers

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The adapter's module -> its name in the model."""
        return check_fit(self.info.modules, self.layers)

    @cached_property
    def shared(self) -> set[str]:
        """Parameters that share their values with others."""
        return {*self.layers.tied, *self.layers.tied.values()}

    @cached_property
    def report(self) -> MergeReport:
        settings, card = self.info.config.settings, self.card
        return MergeReport(
            base=_public_name(card.base.name if card else None) or self.base.name,
            base_digest=self.fingerprint.digest,
            adapter=card.ref if card else self.adapter.name,
            adapter_digest=self.info.digest,
            method="DoRA, float32" if settings.use_dora else "W + scaling * B @ A, float32",
            dtypes=tuple(sorted({self.tensors[name].dtype for name in self.targets})),
            merged=len(self.targets),
            tensors=len(self.tensors),
            size_bytes=self.size_bytes,
        )


def _merge_rows(rows: torch.Tensor, delta: torch.Tensor, magnitudes: torch.Tensor | None) -> None:
    if magnitudes is None:
        rows += delta  # computed in float32 and rounded once
        return
    # DoRA: direction of W + delta, norms from the magnitude vector (https://arxiv.org/abs/2402.09353, equation 5).
    direction = rows.float() + delta
    rows.copy_(direction.mul_((magnitudes / torch.linalg.norm(direction, dim=1)).unsqueeze(1)))


def _read(file: BufferedReader, info: TensorInfo) -> torch.Tensor:
    data = bytearray(info.end - info.start)
    file.seek(info.start)
    if file.readinto(data) < len(data):
        raise ExportError("A weight file became shorter while it was read.")
    return torch.frombuffer(data, dtype=_DTYPES[info.dtype]).reshape(info.shape)


def _copy(source: BufferedReader, target: BufferedWriter, start: int, end: int) -> Iterator[int]:
    source.seek(start)
    for position in range(start, end, _CHUNK_BYTES):
        yield target.write(source.read(min(_CHUNK_BYTES, end - position)))


def _files_to_copy(folder: Path) -> Iterator[Path]:
    names = {path.name for pattern in _COPIED for path in folder.glob(pattern)}
    excluded = {path.name for pattern in _NOT_COPIED for path in folder.glob(pattern)}
    return (folder / name for name in sorted(names - excluded) if (folder / name).is_file())


def _public_name(name: str | None) -> str | None:
    # A local path means nothing on other machines.
    return Path(name).name if name and is_local_base(name) else name
