"""An adapter as a GGUF file of its own, as llama.cpp's `--lora` and Ollama's `ADAPTER` take it.

One base serves any number of such files. The layout is that of llama.cpp's convert_lora_to_gguf, but the scaling
is a part of `lora_b`: llama.cpp has one alpha for all layers, and PEFT one for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from adapterhub.errors import AdapterIncompatibleError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from adapterhub.gguf.architectures import Architecture
    from adapterhub.lora.delta import LoraDelta, ModuleDelta

AdapterType = Literal["f32", "f16"]

_MERGE = "Merge it into the base: `adapterhub export NAME OUT --format gguf`."


def write_adapter(
    file: BinaryIO,
    architecture: Architecture,
    deltas: Mapping[str, ModuleDelta],
    *,
    name: str | None = None,
    dtype: AdapterType = "f32",
) -> None:
    """Writes an adapter's changes as a GGUF file.

    Args:
        file: An empty file, open for writing; it stays open, at the end of what was written.
        architecture: The base's.
        deltas: Module name in transformers' model -> change, in host memory.
        name: What llama.cpp shows as the adapter's name.
        dtype: How its matrices are stored: `"f32"`, or `"f16"` for half the size.

    Raises:
        AdapterIncompatibleError: It uses DoRA, adapts a layer that llama.cpp does not have, or changes a module in
            another way than by LoRA on a linear layer.
        ExportError: A value does not fit into the type, or is not finite.
        OSError: The file cannot be written.
    """
    import gguf

    tensors = dict(adapter_tensors(architecture, deltas, dtype))
    ranks = {delta.rank for delta in deltas.values()}
    writer = gguf.GGUFWriter(None, architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp multiplies by alpha / rank, and by 1 where alpha is 0.
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(ranks.pop()) if len(ranks) == 1 else 0.0)
    writer.add_file_type(getattr(gguf.LlamaFileType, {"f32": "ALL_F32", "f16": "MOSTLY_F16"}[dtype]))
    if name:
        writer.add_name(name)
    for tensor, values in tensors.items():
        writer.add_tensor(tensor, values)
    # The writer itself opens paths only.
    writer.fout, writer.state = [file], gguf.gguf_writer.WriterState.EMPTY  # type: ignore[list-item]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.flush()


def adapter_tensors(
    architecture: Architecture, deltas: Mapping[str, ModuleDelta], dtype: AdapterType = "f32"
) -> Iterator[tuple[str, npt.NDArray[np.float32 | np.float16]]]:
    """llama.cpp's tensors of an adapter: `lora_a` of shape (rank, in_features), `lora_b` of (out_features, rank).

    Args:
        architecture: The base's.
        deltas: As for `write_adapter`.
        dtype: As for `write_adapter`.

    Raises:
        AdapterIncompatibleError, ExportError: As `write_adapter`.
    """
    from gguf import GGMLQuantizationType

    from adapterhub.gguf.quantization import to_bytes
    from adapterhub.lora.delta import LoraDelta

    for module, delta in deltas.items():
        if type(delta) is not LoraDelta:
            raise AdapterIncompatibleError(
                f"The adapter changes {module!r} by more than LoRA on a linear layer, which llama.cpp does not have.",
                hint=_MERGE,
            )
        if delta.magnitude_scale is not None:
            raise AdapterIncompatibleError(
                "The adapter uses DoRA, which llama.cpp does not have.", hint=_MERGE
            )
        weight = architecture.tensor_name(f"{module}.weight")
        if weight is None:
            tied = f"{module}.weight" in architecture.layers.tied
            reason = "shares its weights with the embedding" if tied else "is not a part of the text model"
            raise AdapterIncompatibleError(
                f"The adapter changes {module!r}, which {reason}: llama.cpp has no weight of its own for it.",
                hint=_MERGE,
            )
        order = architecture.row_order(f"{module}.weight")
        for part, tensor in (("lora_a", delta.a), ("lora_b", delta.b if order is None else delta.b[order])):
            values, name = tensor.float().contiguous().numpy(), f"{weight}.{part}"
            stored = to_bytes(values, GGMLQuantizationType[dtype.upper()], name)
            yield name, stored.view({"f32": "float32", "f16": "float16"}[dtype])


def read_adapter(file: Path, architecture: Architecture) -> dict[str, LoraDelta]:
    """The changes that a GGUF file makes, in float32, with its scaling as a part of `b`.

    Args:
        file: From `write_adapter`, or of another program; a base other than the architecture's is not noticed.
        architecture: The base's.

    Returns:
        Module name in transformers' model -> change.
    """
    import gguf
    import torch

    from adapterhub.lora.delta import LoraDelta

    reader = gguf.GGUFReader(file)
    alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    tensors = {one.name: torch.from_numpy(one.data.astype("float32")) for one in reader.tensors}
    deltas = {}
    for module in architecture.layers.shapes:
        weight = architecture.tensor_name(f"{module}.weight")
        if f"{weight}.lora_a" in tensors:
            a, b = tensors[f"{weight}.lora_a"], tensors[f"{weight}.lora_b"]
            order = architecture.row_order(f"{module}.weight")
            scale = alpha / len(a) if alpha else 1.0
            deltas[module] = LoraDelta(a, (b if order is None else b[order.argsort()]) * scale)
    return deltas
