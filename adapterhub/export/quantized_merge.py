"""A merge that is quantised afterwards, with what that costs: for servers that load bitsandbytes' 4 or 8 bits.

The merged model is written in 16 bits first, as any other. Rounding to 4 bits may lose a light fine-tune, so the
predictions of both are compared, and the figures stand in the report and on the card.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from adapterhub._files import new_folder, os_errors_as
from adapterhub.base.fingerprint import weight_files, weight_tensors
from adapterhub.errors import ExportError
from adapterhub.export.adapter_part import AdapterSum
from adapterhub.export.checksums import write_checksums
from adapterhub.export.disk_space import check_disk_space
from adapterhub.export.free_folder import free_folder
from adapterhub.export.merge import LINEAGE_FILE, MergeOptions, MergeReport, merge_adapter
from adapterhub.export.merge_verification import MergeVerifier
from adapterhub.export.model_logits import model_logits
from adapterhub.export.verification import Verification, VerificationTexts, compare_logits

if TYPE_CHECKING:
    from adapterhub.base.loading import ComputeDtype

WeightQuantization = Literal["nf4", "int8"]
_COMPUTE_DTYPES: Mapping[str, ComputeDtype] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json")


def merge_quantized(
    base_folder: str | Path,
    adapter_folder: str | Path | Mapping[Path, float],
    out: str | Path,
    quantization: WeightQuantization,
    texts: VerificationTexts | None = None,
    **options: Unpack[MergeOptions],
) -> MergeReport:
    """Merges an adapter or a blend as `merge_adapter` does, and then quantises the model with bitsandbytes.

    The quantised model is loaded once to write it, and once to measure what it has lost.

    Args:
        base_folder: As for `merge_adapter`.
        adapter_folder: As for `merge_adapter`.
        out: As for `merge_adapter`.
        quantization: How to store the linear layers but the output layer: `"nf4"` (double quantisation) or `"int8"`.
        texts: What the model reads before and after, for the loss; by default what a merge is verified on.
        **options: As for `merge_adapter`.

    Raises:
        ExportError: As for `merge_adapter`, or the quantised model could not be written. Then `out` is not created.
        AdapterInvalidError: As for `merge_adapter`.
        AdapterIncompatibleError: As for `merge_adapter`.
        ConfigError: As for `merge_adapter`.
        DatasetError: As for `merge_adapter`.
        InvalidRequestError: As for `merge_adapter`.
    """
    out, verify = free_folder(out), options.get("verify")
    verifier = verify if isinstance(verify, MergeVerifier) else MergeVerifier()
    if texts is None:
        adapters, force = AdapterSum.of(adapter_folder), options.get("force", False)
        texts = verifier.texts(Path(base_folder), adapters, force=force)
    # The merged model, and less for the quantised one.
    check_disk_space(out, 2 * _weights_bytes(Path(base_folder)))
    what = f"The quantised model could not be written to {str(out)!r}"
    with os_errors_as(ExportError, what), new_folder(out) as temporary:
        merged = temporary / "merged"
        report = merge_adapter(base_folder, adapter_folder, merged, **options)
        _write_quantized(merged, temporary, report, quantization, options.get("max_shard_size"))
        before, after = (model_logits(folder, texts.sequences) for folder in (merged, temporary))
        loss = compare_logits(texts, before, after, progress=verifier.progress)
        shutil.rmtree(merged)
        report = replace(
            report,
            quantization=quantization,
            quantization_loss=loss,
            size_bytes=sum(file.stat().st_size for file in weight_files(temporary)),
        )
        _describe(temporary, report, loss)
        write_checksums(temporary)
    return report


def _weights_bytes(base: Path) -> int:
    return sum(file.stat().st_size for file in set(weight_tensors(base).values()))


def _write_quantized(
    merged: Path,
    out: Path,
    report: MergeReport,
    quantization: WeightQuantization,
    max_shard_size: int | str | None,
) -> None:
    from transformers import GenerationConfig

    from adapterhub.base.loading import load_base

    model = load_base(
        merged,
        quantization=quantization,
        compute_dtype=_COMPUTE_DTYPES[report.dtypes[0]],
        device="cpu",
        training=True,  # without bitsandbytes' packing
        whole=True,
    ).model
    model.generation_config = GenerationConfig()  # the merged model's own file is copied
    model.save_pretrained(out, **({"max_shard_size": max_shard_size} if max_shard_size else {}))
    (out / "generation_config.json").unlink(missing_ok=True)
    weights = {path.name for pattern in _WEIGHTS for path in merged.glob(pattern)}
    for path in merged.iterdir():
        if path.name not in weights:
            shutil.copyfile(path, out / path.name)


def _describe(out: Path, report: MergeReport, loss: Verification) -> None:
    (out / LINEAGE_FILE).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    with (out / "README.md").open("a", encoding="utf-8") as card:
        card.write(
            f"\n## Quantisation\n\nThe merged weights were quantised with bitsandbytes ({report.quantization}) "
            f"afterwards. Compared with the merged model before: {loss}.\n"
        )
