"""A GGUF file as a base: its 16-bit form, a model folder that is written once and kept in a cache.

Training, merging and 4-bit loading need weights in transformers' layout, and so do fingerprints. transformers' reader
brings the file's blocks into it. It leaves out scaled rotary embeddings and some ways to split text without a word:
those that are known are put back here, and the others refused.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub._files import os_errors_as
from adapterhub.base.conversion_cache import converted_folder
from adapterhub.config import cache_folder
from adapterhub.errors import ConfigError

if TYPE_CHECKING:
    import torch

SUFFIX = ".gguf"

_VERSION = 2
"""Counts changes of what is written, so that an older form is not used."""
# llama.cpp's names of ways to split text before byte-level merges, which transformers does not know.
_SPLIT_BY_GPT2 = ("default", "gpt-2", "phi-2", "mpt", "olmo")
_SPLIT_DIGIT_BY_DIGIT = ("smollm", "starcoder", "refact", "command-r", "codeshell")
_ROPE_TENSORS = ("rope_freqs.", "rope_factors_")
# Llama 3.1 and later; the factor differs, and is the largest one in the file.
_LLAMA3_FREQUENCIES = "rope_freqs.weight"
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file."""
    return path.suffix.lower() == SUFFIX and path.is_file()


def gguf_folder(file: Path) -> Path:
    """The model folder of a GGUF file, converted at the first use.

    A file of 16 or 32 bits keeps its dtype; a quantised one is stored as bfloat16. The conversion holds the model in
    memory in that dtype. The folder is in `ADAPTERHUB_CACHE`, or else in the user's cache folder. A file that changes
    is converted again, and a conversion removes those of files that have changed or are gone.

    Args:
        file: The file. One of several parts is not enough.

    Raises:
        ConfigError: The file is damaged, of an architecture that transformers does not read from GGUF, or has something
            that it would leave out; or the folder cannot be written.
    """
    what = f"The GGUF file {str(file)!r} could not be converted"
    with os_errors_as(ConfigError, what):
        return converted_folder(
            cache_folder("gguf"),
            file,
            lambda one: [one],
            _VERSION,
            lambda temporary: _convert(file.resolve(), temporary),
        )


@dataclass(frozen=True)
class _Header:
    """What a file holds.

    Attributes:
        fields: The metadata but for long lists.
        types: The tensors' types by their names.
        sizes: The tensors' numbers of weights by their names.
        factors: Llama 3's factors of frequencies, if any.
    """

    fields: dict[str, Any]
    types: dict[str, str]
    sizes: dict[str, int]
    factors: Any


def _convert(file: Path, out: Path) -> None:
    try:
        header = _read_header(file)
        _refuse_left_out(header)
        _write_tokenizer(file, header.fields, out)
        _write_model(file, header, out)
        _write_licence(header.fields, out)
    except (ConfigError, OSError):
        raise
    except Exception as error:  # readers raise anything on a damaged file
        raise ConfigError(
            f"The GGUF file {file.name!r} could not be read: {error}",
            hint="Convert its original with another tool, or take the base as a folder with safetensors files.",
        ) from error


def _read_header(file: Path) -> _Header:
    from gguf import GGUFReader

    reader = GGUFReader(file)
    short = {name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1}
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    factors = (tensor.data.copy() for tensor in reader.tensors if tensor.name == _LLAMA3_FREQUENCIES)
    return _Header(short, types, sizes, next(factors, None))


def _refuse_left_out(header: _Header) -> None:
    """Refuses what transformers' reader ignores, after which the model would answer wrongly."""
    fields, tensors = header.fields, header.types.keys() - {_LLAMA3_FREQUENCIES}
    if fields.get("split.count", 1) > 1:
        raise ConfigError(
            "The GGUF file is one part of several.",
            hint="Join the parts with llama.cpp's `llama-gguf-split --merge`.",
        )
    architecture = fields.get("general.architecture")
    scaling = fields.get(f"{architecture}.rope.scaling.type", "none")
    scaled = scaling != "none" or any(name.startswith(_ROPE_TENSORS) for name in tensors)
    if scaled and architecture != "gpt-oss":
        raise _unknown_rope()


def _unknown_rope() -> ConfigError:
    return ConfigError(
        "The GGUF file has scaled rotary embeddings of a kind that is not read from GGUF.",
        hint="Take this base as a folder with safetensors files, or by its hub id.",
    )


def _dtype(tensors: dict[str, str]) -> torch.dtype:
    """The file's own dtype; that of small tensors such as norms is often higher and does not count."""
    import torch

    types = set(tensors.values())
    if types == {"F32"}:
        return torch.float32
    return torch.float16 if types <= {"F32", "F16"} else torch.bfloat16


def _llama3_rope(config: Any, factors: Any) -> dict[str, Any]:
    """The settings of rotary embeddings as in Llama 3, which have to give the factors that the file has."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    wanted = torch.from_numpy(factors)
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(len(wanted)) / len(wanted))
    scaled = copy.deepcopy(config)
    scaled.rope_parameters = {
        **config.rope_parameters,
        **_LLAMA3_ROPE,
        "factor": round(float(wanted.max()), 3),
    }
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, "cpu")
    if frequencies.shape != plain.shape or not torch.allclose(plain / frequencies, wanted, rtol=1e-3):
        raise _unknown_rope()
    settings: dict[str, Any] = scaled.rope_parameters
    return settings


def _refuse_lost_weights(model: Any, sizes: dict[str, int]) -> None:
    """Refuses a file with more weights than the model has taken over: the reader passes over tensors unknown to it."""
    config = model.config.get_text_config()
    given = sum(size for name, size in sizes.items() if not _has_no_counterpart(name, config))
    taken = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}  # tied ones once
    if given > (total := sum(taken.values())):
        raise ValueError(f"transformers takes over {total:,} of its {given:,} weights")


def _has_no_counterpart(name: str, config: Any) -> bool:
    """Positions are settings; further blocks predict more than one token; a tied output is the embeddings once more."""
    block = re.match(r"blk\.(\d+)\.", name)
    further = block is not None and int(block[1]) >= config.num_hidden_layers
    return (
        name.startswith(_ROPE_TENSORS) or further or (name == "output.weight" and config.tie_word_embeddings)
    )


def _write_model(file: Path, header: _Header, out: Path) -> None:
    from transformers import AutoModelForCausalLM, GgufConfig

    model, report = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=_dtype(header.types),
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise ValueError(f"it lacks weights, such as {sorted(report['missing_keys'])[0]!r}")
    _refuse_lost_weights(model, header.sizes)
    if header.factors is not None:
        model.config.rope_parameters = _llama3_rope(model.config, header.factors)
    model.hf_quantizer = None  # the weights are plain ones by now; with it they cannot be saved
    model.save_pretrained(out)


def _write_tokenizer(file: Path, fields: dict[str, Any], out: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    split = fields.get("tokenizer.ggml.pre", "default")
    if fields.get("tokenizer.ggml.model") == "gpt2" and split not in GGUF_PRE_TOKENIZER_SPLITS:
        if split in _SPLIT_DIGIT_BY_DIGIT:
            digits = pre_tokenizers.Digits(individual_digits=True)
            gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, gpt2])
        elif split not in _SPLIT_BY_GPT2:
            raise ValueError(
                f"transformers does not know how its tokenizer splits text ({str(split)[:50]!r})"
            )
    tokenizer.save_pretrained(out)


def _write_licence(fields: dict[str, Any], out: Path) -> None:
    """A model card with the licence, which merged models pass on."""
    import yaml

    if isinstance(licence := fields.get("general.license"), str):
        (out / "README.md").write_text(f"---\n{yaml.safe_dump({'license': licence})}---\n", encoding="utf-8")
