"""Merging an adapter or a blend into its base's weights on disk, written as a standalone model.

Weights are computed in float32 and rounded once, a block of rows at a time; the others are copied. So memory holds a
few megabytes, whatever the size of the model. No loaded model is used or changed. Merging into 4-bit weights would
round away a light fine-tune.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypedDict

from adapterhub._files import new_folder, os_errors_as
from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.errors import ConfigError, ExportError
from adapterhub.export.adapter_part import AdapterSum
from adapterhub.export.base_name import base_name
from adapterhub.export.checksums import CHECKSUMS_FILE, write_checksums
from adapterhub.export.disk_space import check_disk_space
from adapterhub.export.free_folder import free_folder
from adapterhub.export.merge_plan import INDEX_FILE, MergePlan
from adapterhub.export.merge_verification import MergeVerification, MergeVerifier
from adapterhub.export.model_card import model_card
from adapterhub.export.prompt_files import prompt_files
from adapterhub.export.round_trip import RoundTrip, training_round_trip
from adapterhub.export.verification import Verification, VerificationTexts
from adapterhub.export.weight_files import shard_header, write_shard
from adapterhub.registry.cards import CARD_FILE
from adapterhub.registry.prompt_files import prompt_profile_of

LINEAGE_FILE = "merge.json"
"""The file with the `MergeReport`, next to the merged weights."""

Dtype = Literal["bfloat16", "float16", "float32"]
_DTYPES: dict[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*")
_NOT_COPIED = ("*.bin.index.json", CARD_FILE, LINEAGE_FILE, CHECKSUMS_FILE, INDEX_FILE)


@dataclass(frozen=True)
class MergedAdapter:
    """One adapter of a merge.

    Attributes:
        ref: `name@version`; the folder's name if it has no card.
        digest: Its digest.
        weight: Its weight in the sum.
    """

    ref: str
    digest: str
    weight: float


@dataclass(frozen=True)
class MergeReport:
    """The lineage of a merged model; written next to it as `merge.json`.

    Attributes:
        base: The base's name.
        base_digest: Its fingerprint's digest.
        adapter: `name@version`, the folder's name if it has no card, or a blend such as `json@1:0.7+support@2:0.3`.
        adapter_digest: The adapter's digest.
        parts: The adapters that were merged.
        method: The arithmetic.
        exact: How training stored the weights that were merged into, such as "nf4, double quantisation"; None for the
            base's own.
        dtypes: Dtypes of the merged weights, in safetensors' notation.
        merged: Number of weights that the adapter changed.
        tensors: Number of weights in all.
        untied: Weights that share the embedding's values in the base, and are written on their own.
        size_bytes: Size of all shards.
        verification: How far its predictions are from the adapter's; None if that was not measured.
        quantization: How the merged weights were quantised afterwards; None if they were not.
        quantization_loss: How far the quantised model is from the merged one.
    """

    base: str
    base_digest: str
    adapter: str
    adapter_digest: str
    parts: tuple[MergedAdapter, ...]
    method: str
    exact: str | None
    dtypes: tuple[str, ...]
    merged: int
    tensors: int
    untied: tuple[str, ...]
    size_bytes: int
    verification: MergeVerification | None = None
    quantization: str | None = None
    quantization_loss: Verification | None = None


class MergeOptions(TypedDict, total=False):
    """The keyword arguments of `merge_adapter`."""

    dtype: Dtype | None
    exact: bool | RoundTrip
    max_shard_size: int | str | None
    force: bool
    verify: bool | MergeVerifier
    progress: Callable[[int, int], None] | None


def merge_adapter(
    base_folder: str | Path,
    adapter_folder: str | Path | Mapping[Path, float],
    out: str | Path,
    *,
    dtype: Dtype | None = None,
    exact: bool | RoundTrip = False,
    max_shard_size: int | str | None = None,
    force: bool = False,
    verify: bool | MergeVerifier = True,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merges an adapter or a blend into its base's weights on disk, as a model that transformers loads without PEFT.

    Config, tokenizer, chat template and generation config are the base's but where the adapter's prompt profile and
    tokenizer files differ. Tied embeddings stay tied, unless the adapter changes the output layer and the embedding in
    different ways: then that layer is written on its own, and the config says so.

    Args:
        base_folder: The base in 16 or 32 bits: `config.json` and safetensors, in one file or in shards.
        adapter_folder: A PEFT folder, or a version's folder in a registry, whose card is used for the lineage; for a
            blend folder -> weight, as `adapter_folders` gives.
        out: The new folder; it must not exist, or be empty.
        dtype: The dtype of the written weights; the base's if not given.
        exact: Merge into the weights that the adapter was trained on, where training stored the base in 4 bits: each
            linear layer but the output layer is quantised and dequantised first. True takes what the card records.
        max_shard_size: The largest size of a file, in bytes or as "5GB"; the base's own files if not given.
        force: Also merge into a base other than the one on the adapter's card, if the shapes fit.
        verify: Compare the merged model's predictions with the adapter's before it is kept, in float32 on the CPU; the
            figures go into the report and onto the card. A verifier says on which texts.
        progress: Called with the bytes of weights written so far and in total.

    Raises:
        ExportError: `out` is not empty, the disk is too small, the base is quantised, a module has no weight of its own
            in the base, a merged weight is not finite, the predictions are not the adapter's, or writing failed.
            Then `out` is not created.
        AdapterInvalidError: The adapter's files are damaged, or not those that were registered.
        AdapterIncompatibleError: The adapter is of a kind that cannot be merged, or for another base.
        ConfigError: The base cannot be read.
        DatasetError: The verifier's data cannot be read.
        InvalidRequestError: A weight is no number, or no text can be verified on.
    """
    out = free_folder(out)
    if dtype is not None and dtype not in _DTYPES:
        raise ExportError(f"There is no dtype {dtype!r} to write.", hint=f"Use {', '.join(_DTYPES)}.")
    base, adapters = Path(base_folder), AdapterSum.of(adapter_folder)
    fingerprint = BaseFingerprint.of(base)
    for part in adapters.parts:
        part.check_base(base, fingerprint, force=force)
    round_trip = _round_trip(adapters, exact) if exact else None
    plan = MergePlan(base, adapters, dtype and _DTYPES[dtype], round_trip, max_shard_size)
    verifier = MergeVerifier() if verify is True else verify or None
    merge = _Merge(plan, fingerprint, verifier, force)
    merge.check()
    check_disk_space(out, merge.size_bytes)
    what = f"The merged model, {merge.size_bytes:,} bytes, could not be written to {str(out)!r}"
    with os_errors_as(ExportError, what), new_folder(out) as temporary:
        return merge.write(temporary, progress or (lambda written, total: None))


def _round_trip(adapters: AdapterSum, exact: bool | RoundTrip) -> RoundTrip:
    if isinstance(exact, RoundTrip):
        return exact
    return training_round_trip(part.round_trip for part in adapters.parts)


@dataclass(frozen=True)
class _Merge:
    """One merge: `check` raises before `write` writes anything."""

    plan: MergePlan
    fingerprint: BaseFingerprint
    verifier: MergeVerifier | None
    force: bool

    def check(self) -> None:
        _ = self.prompt_files, self.texts  # refuses a tokenizer that is damaged, or data that cannot be read
        with os_errors_as(ConfigError, "The base cannot be read"):
            _ = self.size_bytes  # of all tensors, so it refuses what cannot be written

    def write(self, out: Path, progress: Callable[[int, int], None]) -> MergeReport:
        digests = self._write_weights(out, progress)
        for path in _files_to_copy(self.plan.base):
            shutil.copyfile(path, out / path.name)
        for name, content in {**self.plan.files(), **self.prompt_files}.items():
            (out / name).write_bytes(content)
        report = self.report
        if self.verifier and self.texts:
            report = replace(report, verification=self.verifier.verify(out, self.plan, self.texts))
        (out / LINEAGE_FILE).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        (out / "README.md").write_text(self._model_card(report), encoding="utf-8")
        write_checksums(out, digests)
        return report

    def _write_weights(self, out: Path, progress: Callable[[int, int], None]) -> dict[str, str]:
        """File -> digest."""
        written = 0

        def wrote(size: int) -> None:
            nonlocal written
            written += size
            progress(written, self.size_bytes)

        return {file: write_shard(out / file, tensors, wrote) for file, tensors in self.plan.shards.items()}

    def _model_card(self, report: MergeReport) -> str:
        details = [
            f"{report.merged} of {report.tensors} weights carry the adapter ({report.method}, rounded once to "
            f"{', '.join(report.dtypes)}). `{LINEAGE_FILE}` has the digests."
        ]
        if report.exact:
            details.append(
                f"The linear layers are those that training computed with: stored in 4 bits ({report.exact}) and "
                "dequantised."
            )
        if report.untied:
            details.append(
                f"{', '.join(map(repr, report.untied))} shares the embedding's weights in the base and no longer does "
                "here, since the adapter changes one of them: `tie_word_embeddings` is false in the config."
            )
        sections = [" ".join(details)]
        if report.verification:
            sections.append(f"## Verification\n\n{report.verification}")
        return model_card(
            report.base, self.plan.base, self.plan.adapters, report.exact, "\n\n".join(sections)
        )

    @cached_property
    def prompt_files(self) -> dict[str, bytes]:
        adapter, base = self.plan.adapters.main.folder, self.plan.base
        return prompt_files(base, adapter, prompt_profile_of(adapter, base, force=self.force))

    @cached_property
    def texts(self) -> VerificationTexts | None:
        if self.verifier is None:
            return None
        return self.verifier.texts(self.plan.base, self.plan.adapters, force=self.force)

    @cached_property
    def size_bytes(self) -> int:
        return sum(
            len(shard_header(tensors)) + sum(t.size_bytes for t in tensors)
            for tensors in self.plan.shards.values()
        )

    @cached_property
    def report(self) -> MergeReport:
        plan = self.plan
        infos = [part.info for part in plan.adapters.parts]
        uses_dora = any(info.config.settings.use_dora for info in infos)
        replaces = any(info.further.saved or info.further.tokens for info in infos)
        return MergeReport(
            base=base_name(plan.adapters.main.card, plan.base, self.fingerprint),
            base_digest=self.fingerprint.digest,
            adapter=plan.adapters.ref,
            adapter_digest=plan.adapters.digest,
            parts=tuple(
                MergedAdapter(part.ref, part.info.digest, part.weight) for part in plan.adapters.parts
            ),
            method=_method(uses_dora, plan.adapters.is_blend) + (", or replaced" if replaces else ""),
            exact=str(plan.round_trip) if plan.round_trip else None,
            dtypes=plan.dtypes,
            merged=sum(tensor.change is not None for tensor in plan.tensors),
            tensors=sum(1 for _ in plan.tensors),
            untied=plan.untied,
            size_bytes=self.size_bytes,
        )


def _method(uses_dora: bool, is_blend: bool) -> str:
    if is_blend:
        return "W + sum of weight * change, float32"
    return "DoRA, float32" if uses_dora else "W + scaling * B @ A, float32"


def _files_to_copy(folder: Path) -> Iterator[Path]:
    names = {path.name for pattern in _COPIED for path in folder.glob(pattern)}
    excluded = {path.name for pattern in _NOT_COPIED for path in folder.glob(pattern)}
    return (folder / name for name in sorted(names - excluded) if (folder / name).is_file())
