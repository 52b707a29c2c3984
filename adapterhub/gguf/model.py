"""Writing a model of transformers on disk as a GGUF file, streamed: memory holds about a million weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterhub.gguf.architectures import Architecture
from adapterhub.gguf.hyperparameters import Field, hyperparameters
from adapterhub.gguf.quantization import FILE_TYPES, tensor_type, to_bytes
from adapterhub.gguf.tokenizer import GgufTokenizer
from adapterhub.gguf.weights import Weight, model_weights


def write_model(
    folder: str | Path,
    file: str | Path,
    tokenizer: GgufTokenizer,
    *,
    file_type: str = "f16",
    general: Mapping[str, Field] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a model as a GGUF file.

    Args:
        folder: The model: `config.json`, and safetensors files in 16 or 32 bits.
        file: The new file.
        tokenizer: Its tokenizer in llama.cpp's form.
        file_type: One of `WITHOUT_LLAMA_CPP`.
        general: Further fields, such as `"general.name"`.
        progress: Called with the weights written so far and in total.

    Raises:
        ExportError: The architecture is not written, llama.cpp does not compute what the model does, or a weight does
            not fit into the type.
        ConfigError: The folder's files cannot be read.
        OSError: The file cannot be written.
    """
    import gguf

    folder = Path(folder)
    architecture = Architecture.of_folder(folder)
    fields = {
        "general.type": "model",
        "general.file_type": int(gguf.LlamaFileType[FILE_TYPES[file_type]]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **(general or {}),
        **hyperparameters(architecture),
        **tokenizer.fields,
    }
    write_gguf(file, architecture.name, fields, model_weights(folder, architecture), file_type, progress)


def write_gguf(
    file: str | Path,
    architecture: str,
    fields: Mapping[str, Field],
    weights: Sequence[Weight],
    file_type: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes fields and weights as a GGUF file, a block of rows at a time.

    Args:
        file: The new file.
        architecture: llama.cpp's name.
        fields: The metadata.
        weights: The tensors.
        file_type: Decides on the types of the tensors.
        progress: Called with the weights written so far and in total.
    """
    import gguf

    writer = gguf.GGUFWriter(str(file), architecture)
    _add_fields(writer, fields)
    types = {weight.name: tensor_type(weight.name, weight.shape, file_type) for weight in weights}
    for weight in weights:
        _add_info(writer, weight, types[weight.name])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_weights(writer, weights, types, progress)
    finally:
        writer.close()


def _add_fields(writer: Any, fields: Mapping[str, Field]) -> None:
    for key, value in fields.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)


def _add_info(writer: Any, weight: Weight, kind: Any) -> None:
    import numpy as np
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[kind]
    *rows, width = weight.shape
    stored = (*rows, width // block * size)  # in bytes
    nbytes = int(np.prod(stored, dtype=np.int64))
    writer.add_tensor_info(weight.name, stored, np.dtype(np.uint8), nbytes, raw_dtype=kind)


def _write_weights(
    writer: Any,
    weights: Sequence[Weight],
    types: Mapping[str, Any],
    progress: Callable[[int, int], None] | None,
) -> None:
    (out,) = writer.fout
    total, done = sum(_size(weight) for weight in weights), 0
    writer.write_padding(out, out.tell())
    for weight in weights:
        written = 0
        for block in weight.blocks():
            written += out.write(to_bytes(block, types[weight.name], weight.name).data)
            done += block.size
            if progress:
                progress(done, total)
        writer.write_padding(out, written)


def _size(weight: Weight) -> int:
    size = 1
    for one in weight.shape:
        size *= one
    return size
