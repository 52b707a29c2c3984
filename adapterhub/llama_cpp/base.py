"""A GGUF file as the base of a llama.cpp engine: llama.cpp's model, and what transformers makes of the file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.base.loading import context_length, end_token_ids, generation_settings, load_tokenizer
from adapterhub.base.locating import gguf_file, locate_base
from adapterhub.engine.kv.shape import KVShape
from adapterhub.errors import ConfigError, EngineError, ExportError
from adapterhub.gguf.architectures import Architecture
from adapterhub.gguf.hyperparameters import attention_window
from adapterhub.llama_cpp.bindings import LlamaModel, library, load_model, metadata
from adapterhub.llama_cpp.conversion import FileType, gguf_of_folder


@dataclass(frozen=True)
class GgufBase:
    """A loaded GGUF file, which belongs to one engine; it implements `EngineBase`.

    Attributes:
        name: The name or path that it was loaded by.
        file: The GGUF file.
        folder: The base in transformers' format: settings, tokenizer, and the weights that adapters are compared
            with.
        fingerprint: That of the folder, so that adapters trained on the file fit; or of the base that an export has
            written the file from.
        tokenizer: Its tokenizer.
        architecture: How llama.cpp names its weights.
        generation_config: The settings in its `generation_config.json`.
        end_token_ids: Tokens that end an answer.
        context_length: Maximum number of tokens of a sequence; of a model that forgets those before a window, and that
            llama.cpp computes without one, the window.
        vocabulary_size: Width of its logits.
        matmul_dtype: How most of its weights are stored, such as `"Q4_K - Medium"`.
        llama_model: llama.cpp's model; one engine claims it.
    """

    name: str
    file: Path
    folder: Path
    fingerprint: BaseFingerprint
    tokenizer: Any
    architecture: Architecture
    generation_config: dict[str, Any]
    end_token_ids: frozenset[int]
    context_length: int
    vocabulary_size: int
    matmul_dtype: str
    llama_model: LlamaModel
    model = None
    compute_dtype = torch.float32
    device = torch.device("cpu")
    arithmetic = ()

    @property
    def quantization(self) -> str:
        """How most of its weights are stored."""
        return self.matmul_dtype

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of its weights, which are most of the file."""
        return self.file.stat().st_size

    @property
    def linear_layers(self) -> LinearLayers:
        """The linear layers of transformers' model of the same weights."""
        return self.architecture.layers

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """Memory of one token's keys and values, which llama.cpp keeps in float16."""
        return KVShape.of(self.architecture.config, torch.float16, self.device).bytes_per_token


def load_gguf_base(
    name: str | Path, *, file_type: FileType = "q8_0", device: str = "auto", revision: str | None = None
) -> GgufBase:
    """Loads a base through llama.cpp: a GGUF file, or the GGUF form of another base, written into the cache once.

    Of a GGUF file the 16-bit form is written there: its tokenizer and fingerprint are used.

    Args:
        name: `"adapterhub-demo"`, a folder, a GGUF file, or a hub id.
        file_type: How the weights of a base that is not a GGUF file are stored: `"q8_0"` or `"f16"`.
        device: `"auto"` uses a GPU if llama.cpp was built for one, `"cpu"` does not.
        revision: A branch, tag or commit, where `name` is a hub id.

    Raises:
        ConfigError: There is no such base or device, it cannot be read or converted, or llama-cpp-python is not
            installed.
        EngineError: The model is not one that can be served.
    """
    if device not in ("auto", "cpu"):
        raise ConfigError(
            f"llama.cpp does not take the device {device!r}.",
            hint="Use 'auto' or 'cpu'; CUDA_VISIBLE_DEVICES names GPUs.",
        )
    llama, folder = library(), locate_base(name, revision=revision)
    tokenizer = load_tokenizer(name, revision=revision)
    try:
        architecture = Architecture.of_folder(folder)
        file = gguf_file(name) or gguf_of_folder(folder, architecture, file_type)
    except ExportError as error:
        raise EngineError(
            f"The llama.cpp engine cannot serve this model. {error.message}",
            hint="Serve it with engine='transformers'.",
        ) from error
    settings = generation_settings(folder, architecture.config)
    model = load_model(file, use_gpu=device == "auto")
    return GgufBase(
        name=str(name),
        file=file,
        folder=folder,
        fingerprint=_fingerprint(folder, model),
        tokenizer=tokenizer,
        architecture=architecture,
        generation_config=settings.to_diff_dict(),
        end_token_ids=end_token_ids(settings, tokenizer),
        context_length=_context_length(architecture, tokenizer, model),
        vocabulary_size=llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model.address)),
        matmul_dtype=llama.llama_ftype_name(llama.llama_model_ftype(model.address))
        .decode()
        .removeprefix("(guessed) "),
        llama_model=model,
    )


def _context_length(architecture: Architecture, tokenizer: Any, model: LlamaModel) -> int:
    trained: int = library().llama_model_n_ctx_train(model.address)
    window = attention_window(architecture)
    return min(window or trained, trained, context_length(architecture.config, tokenizer))


def _fingerprint(folder: Path, model: LlamaModel) -> BaseFingerprint:
    """The identity of the base: of the one that the file was exported from, if it says so."""
    found = BaseFingerprint.of(folder)
    digest = metadata(model, "adapterhub.base_digest")
    if digest is None or metadata(model, "adapterhub.adapter_digest"):  # an adapter was merged
        return found
    return found.model_copy(update={"digest": digest, "tokenizer_digest": None})
