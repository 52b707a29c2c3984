"""Loading a base: a frozen causal language model, 4-bit by default, with its tokenizer and fingerprint."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from bitsandbytes.functional import has_avx512bf16
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from adapterhub.base.arithmetic import describe_arithmetic
from adapterhub.base.auto_class import text_class, whole_class, why_no_decoder
from adapterhub.base.auto_quantization import auto_quantization
from adapterhub.base.dense_threshold import choose_dense_thresholds
from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.base.half_weights import halve_head
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.base.locating import locate_base
from adapterhub.base.packed_linear import take_packed_layers
from adapterhub.base.quantized_weights import (
    convert_unquantized,
    disable_weight_packing,
    matmul_dtype,
    weight_bytes,
)
from adapterhub.base.stored_quantization import stored_quantization
from adapterhub.base.tokenizer_files import TokenizerFiles
from adapterhub.base.weight_only import WeightOnlyLinear, WeightOnlyQuantization
from adapterhub.errors import ConfigError, EngineError

Quantization = Literal["nf4", "fp4", "int8"] | WeightOnlyQuantization
ComputeDtype = Literal["auto", "float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CONTEXT_SETTINGS = ("max_position_embeddings", "max_seq_len", "seq_length")
_NO_LIMIT = 2**31 - 1
LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
    ZeroDivisionError,
    StrictDataclassError,
)
"""What transformers raises on a base's damaged or unknown files, and for want of a package."""


@dataclass(frozen=True)
class Base:
    """A loaded base, whose model belongs to one engine.

    The fields never change, but the model does: an engine replaces its attention and wraps the linear layers that
    adapters target. So an engine claims the base, and from then on only that engine may run the model.

    Attributes:
        model: The causal language model, in eval mode, its weights frozen.
        tokenizer: Its tokenizer; `pad_token` is `eos_token` if it has none.
        name: The name, path or hub id that it was loaded by.
        folder: The folder with its files.
        fingerprint: Identifies it independently of name and path.
        quantization: How its linear layers are stored; None if unquantised.
        compute_dtype: The dtype of its activations.
    """

    model: Any
    tokenizer: Any
    name: str
    folder: Path
    fingerprint: BaseFingerprint
    quantization: Quantization | None
    compute_dtype: torch.dtype
    _claimed: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def claim(self) -> None:
        """Makes the caller the only owner of the model; any thread may call it.

        Raises:
            EngineError: It has an owner already.
        """
        if not self._claimed.acquire(blocking=False):
            raise EngineError(
                f"Base {self.name!r} belongs to another engine, which has changed its model.",
                hint="Load it again with load_base for each engine.",
            )

    def release(self) -> None:
        """Lets another caller claim the model, which is as it was when it was claimed."""
        self._claimed.release()

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        device: torch.device = self.model.device
        return device

    @property
    def vocabulary_size(self) -> int:
        """Width of its logits."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def generation_config(self) -> dict[str, Any]:
        """The settings in its `generation_config.json` that differ from transformers' defaults."""
        settings: dict[str, Any] = self.model.generation_config.to_diff_dict()
        return settings

    @cached_property
    def context_length(self) -> int:
        """The maximum number of tokens of a sequence, prompt and completion."""
        return context_length(self.model.config, self.tokenizer)

    @cached_property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer: those of its generation config, and the tokenizer's end token."""
        return end_token_ids(self.model.generation_config, self.tokenizer)

    @cached_property
    def matmul_dtype(self) -> torch.dtype:
        """The dtype in which 4-bit and unquantised layers multiply; see `compute_dtype` of `load_base`."""
        return matmul_dtype(self.model, self.compute_dtype)

    @cached_property
    def arithmetic(self) -> tuple[str, ...]:
        """In words, how it is multiplied on this machine; found at the first use, as `linear_layers` are."""
        return describe_arithmetic(self.model, self.compute_dtype, self.matmul_dtype)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of its weights, with the scales of those that are quantised."""
        return weight_bytes(self.model)

    @cached_property
    def linear_layers(self) -> LinearLayers:
        """Its linear layers; they are found at the first use, which must come before an engine wraps them."""
        return LinearLayers.of_model(self.model, self.folder)


def end_token_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: those of a generation config, and the tokenizer's end token."""
    configured = generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*ids, tokenizer.eos_token_id] if token is not None)


def generation_settings(folder: Path, config: Any) -> Any:
    """transformers' `GenerationConfig` of a base that is not loaded.

    Args:
        folder: The base's files.
        config: Its transformers configuration.
    """
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(config)


def load_base(
    model: str | Path,
    *,
    quantization: Quantization | Literal["auto"] | None = "auto",
    compute_dtype: ComputeDtype = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    training: bool = False,
    whole: bool = False,
) -> Base:
    """Loads a base through transformers and bitsandbytes.

    Args:
        model: `"adapterhub-demo"`, a folder, a GGUF file, or a hub id.
        quantization: `"auto"` is 4 bits: `"int4"` on a CPU that torch has a kernel for and bitsandbytes has not, else
            `"nf4"`. `"nf4"` and `"fp4"` (double quantisation) and `"int8"` are bitsandbytes'; `"int4"` (groups of 32
            with a scale and an offset) and `"int8_weight_only"` are multiplied by torch's kernels, on CPUs. None leaves
            weights unquantised. A base whose files are quantised by bitsandbytes stays as it is stored, whatever is
            asked for.
        compute_dtype: `"auto"` is bfloat16 on a GPU that has it, else float16; on a CPU it is float32
            (`benchmarks/compute_dtype.py` has the figures), but bitsandbytes' fast kernel multiplies 4-bit weights in
            bfloat16 where the CPU has AVX512-BF16, and so do torch's for `"int4"` and `"int8_weight_only"`.
            `"float32"` and `"float16"` are kept, without those kernels. For training it is bfloat16 on such a CPU.
        device: `"auto"` (the first GPU if there is one), `"cpu"`, `"cuda"` or `"cuda:N"`.
        revision: A branch, tag or commit, where `model` is a hub id.
        trust_remote_code: Run Python code of the repository.
        training: Disable bitsandbytes' packing of 4-bit weights, through which no gradient flows.
        whole: Load all that a vision-language checkpoint holds, also where transformers has its decoder alone.

    Raises:
        ConfigError: There is no such base, device, dtype or quantisation, or the files are not a causal language model.
    """
    folder = locate_base(model, revision=revision, trust_remote_code=trust_remote_code)
    fingerprint = BaseFingerprint.of(folder)
    target_device = _device(device)
    dtype = _dtype(compute_dtype, target_device, training=training)
    if quantization == "auto":
        quantization = auto_quantization(target_device, training=training).quantization
    # The kernels compute in bfloat16, whatever the dtype of activations.
    may_round = compute_dtype in ("auto", "bfloat16") and not training
    stored = stored_quantization(folder)
    if not stored:
        _refuse_weight_only(quantization, target_device, training=training)
    asked = _quantization_config(quantization, dtype, dense=not may_round)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        if reason := why_no_decoder(config):
            raise ConfigError(
                f"{str(model)!r} cannot be a base: {reason}.", hint="A base is a causal language model."
            )
        loaded, report = (whole_class if whole else text_class)(config).from_pretrained(
            folder,
            # None would hide that the files are quantised.
            **({} if stored else {"quantization_config": asked}),
            dtype=dtype,
            device_map={"": target_device},
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        tokenizer = _tokenizer(folder, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        raise _not_loaded(model, error) from error
    _refuse_missing_weights(str(model), loaded, report["missing_keys"])
    if stored:
        convert_unquantized(loaded, dtype)
    loaded.eval().requires_grad_(False)
    disable_weight_packing(loaded, only_unsupported=may_round)
    if may_round:
        choose_dense_thresholds(take_packed_layers(loaded))
    if not training:
        halve_head(loaded)
    return Base(loaded, tokenizer, str(model), folder, fingerprint, stored or quantization, dtype)


def context_length(config: Any, tokenizer: Any) -> int:
    """The maximum number of tokens of a sequence, from a model's configuration and its tokenizer."""
    config = config.get_text_config()
    # LongRoPE changes the positions of the whole batch once one sequence is longer than this.
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type") == "longrope" and (short := rope.get("original_max_position_embeddings")):
        return int(short)
    limits = (getattr(config, name, None) for name in _CONTEXT_SETTINGS)
    # Bases without position embeddings (BLOOM, Mamba) have no such setting; their tokenizer may have a limit.
    return int(next(filter(None, limits), min(tokenizer.model_max_length, _NO_LIMIT)))


def training_dtype(device: str, compute_dtype: ComputeDtype) -> tuple[str, torch.dtype]:
    """The device and the dtype that `load_base` takes for training.

    Args:
        device: As for `load_base`.
        compute_dtype: As for `load_base`.

    Raises:
        ConfigError: There is no such device or dtype.
    """
    target = _device(device)
    return target, _dtype(compute_dtype, target, training=True)


def load_tokenizer(model: str | Path, *, revision: str | None = None) -> Any:
    """Loads a base's tokenizer alone, as `load_base` does.

    Args:
        model: As for `load_base`.
        revision: As for `load_base`.

    Raises:
        ConfigError: There is no such base, or its tokenizer cannot be loaded.
    """
    folder = locate_base(model, revision=revision)
    try:
        return _tokenizer(folder, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise _not_loaded(model, error) from error


def _tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    # Off: it removes spaces before commas, which damages code, and streamed text could not follow.
    tokenizer.clean_up_tokenization_spaces = False
    if tokenizer.chat_template is None:
        tokenizer.chat_template = TokenizerFiles(folder).processor_chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _not_loaded(model: str | Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"The files of base {str(model)!r} could not be loaded: {error}",
        hint="`adapterhub doctor` shows what is installed; the folder must hold a causal language model.",
    )


def _quantization_config(quantization: Quantization | None, dtype: torch.dtype, *, dense: bool) -> Any:
    match quantization:
        case "int4" | "int8_weight_only":
            from adapterhub.base.weight_only_loading import WeightOnlyConfig

            return WeightOnlyConfig(quantization, dtype if dense else None)
        case "nf4" | "fp4":
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=quantization,
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        case "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        case None:
            return None
    names = ("auto", *(name for one in get_args(Quantization) for name in get_args(one) or [one]))
    raise ConfigError(
        f"There is no quantisation {quantization!r}.", hint=f"Use {', '.join(map(repr, names))} or None."
    )


def _refuse_weight_only(quantization: Quantization | None, device: str, *, training: bool) -> None:
    if quantization not in get_args(WeightOnlyQuantization):
        return
    if training:
        raise ConfigError(
            f"No gradient flows through weights that are stored in {quantization!r}.",
            hint="Train with 'nf4', 'int8' or None; the adapter can be served on any quantisation of its base.",
        )
    if device != "cpu":
        raise ConfigError(
            f"{quantization!r} is multiplied by kernels for CPUs, not on {device!r}.",
            hint="Use 'nf4' or 'int8', or device='cpu'.",
        )


def _refuse_missing_weights(base: str, model: Any, names: Iterable[str]) -> None:
    # transformers initialises missing weights at random. Scales are in no file.
    if missing := sorted(name for name in names if not _is_scale(model, name)):
        raise ConfigError(
            f"The files of base {base!r} lack {len(missing)} weights, such as {missing[0]!r}.",
            hint="Its config.json is of another model, or it is not a causal language model.",
        )


def _is_scale(model: Any, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf not in ("weight", "bias") and isinstance(model.get_submodule(owner), WeightOnlyLinear)


def _device(device: str) -> str:
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError(f"There is no device {device!r}.", hint="Use 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    if device.startswith("cuda") and int(device[5:] or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"There is no {device!r}: this PyTorch sees {torch.cuda.device_count()} CUDA GPUs.",
            hint="Use device='cpu', or install a CUDA build of torch.",
        )
    return "cuda:0" if device == "cuda" else device


def _dtype(compute_dtype: ComputeDtype, device: str, *, training: bool) -> torch.dtype:
    if compute_dtype in _DTYPES:
        return _DTYPES[compute_dtype]
    if compute_dtype != "auto":
        raise ConfigError(
            f"There is no compute dtype {compute_dtype!r}.",
            hint=f"Use 'auto', {', '.join(map(repr, _DTYPES))}.",
        )
    if device == "cpu":
        # A CPU with AMX has AVX512-BF16 too.
        return torch.bfloat16 if training and has_avx512bf16() else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
