"""The fingerprint of a base, read from its folder without torch: an adapter works on the base it was trained on only.

A name does not identify a base: revisions share it, and a folder may have any. Hashing 14 GB takes a minute. So the
fingerprint covers the name, dtype, shape and first 4 KiB of every tensor, and the architecture settings. Tokenizer and
chat template have digests of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from adapterhub.base.tokenizer_files import TokenizerFiles
from adapterhub.errors import AdapterInvalidError, ConfigError
from adapterhub.peft_format.safetensors_header import TensorInfo, read_header

# Architecture settings, under the names in the configs of Llama, GPT-2 and others.
_SETTINGS = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads",),
    "intermediate_size": ("intermediate_size", "n_inner"),
}
_SAMPLE_BYTES = 4096
_MAX_JSON_BYTES = 32 * 2**20


class BaseFingerprint(BaseModel):
    """Identifies a base independently of its name and path."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )

    architecture: str
    """The model class, from `architectures` in `config.json`."""
    model_type: str
    """`model_type` in `config.json`."""
    vocab_size: int
    """Rows of the embedding."""
    hidden_size: int
    """Width of the residual stream."""
    num_hidden_layers: int
    """Number of layers."""
    digest: str
    """sha256 over name, dtype, shape and first 4 KiB of every tensor, and the architecture settings."""
    tokenizer_digest: str | None = None
    """sha256 over the tokenizer's tokens, their ids and its merges; None if they are not known."""
    chat_template_digest: str | None = None
    """sha256 over the tokenizer's chat template; None if it is not known."""

    @classmethod
    def of(cls, folder: str | Path) -> BaseFingerprint:
        """Reads the fingerprint of a base on disk.

        Takes a few milliseconds for 7 billion parameters, and half a second for a tokenizer of 250,000 tokens. Changes
        after the first 4 KiB of a tensor are not detected.

        Args:
            folder: Holds `config.json` and safetensors weights, in one file or in shards.

        Raises:
            ConfigError: The folder holds no base that can be read.
        """
        with _base_errors(Path(folder)):
            config = _read_config(Path(folder))
            settings = _settings(config)
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
            for name, tensor, path in sorted(_tensors(Path(folder)), key=lambda entry: entry[0]):
                digest.update(f"\n{name} {tensor.dtype} {tensor.shape} ".encode())
                digest.update(_head(path, tensor))
            tokenizer = TokenizerFiles(Path(folder))
            known = {name: settings[name] or 0 for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
            return cls(
                architecture=settings["architecture"],
                model_type=settings["model_type"],
                digest=f"sha256:{digest.hexdigest()}",
                tokenizer_digest=tokenizer.tokenizer_digest,
                chat_template_digest=tokenizer.chat_template_digest,
                **known,
            )

    def mismatch(self, other: BaseFingerprint) -> str | None:
        """Describes how another base differs from this one. The chat template may differ: an adapter can have its own.

        Returns:
            The first difference, architecture before weights and tokenizer; None if adapters of one fit the other.
        """
        for field in ("architecture", "vocab_size", "hidden_size", "num_hidden_layers"):
            this, others = getattr(self, field), getattr(other, field)
            if this != others:
                return f"{field} is {others}, not {this}"
        if self.digest != other.digest:
            return "it has the same shape but other weights"
        return (
            "its tokenizer has other tokens"
            if _differ(self.tokenizer_digest, other.tokenizer_digest)
            else None
        )

    def has_other_template(self, other: BaseFingerprint) -> bool:
        """Whether another base's chat template is known to differ from this one's."""
        return _differ(self.chat_template_digest, other.chat_template_digest)


def _differ(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and one != other


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a base: one, or the shards that its index names.

    Raises:
        OSError, ValueError, KeyError: There is no file and no index, or the index is damaged.
    """
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index_file = folder / "model.safetensors.index.json"
    if not index_file.is_file():
        pickle = next((path.name for path in sorted(folder.glob("*.bin"))), None)
        raise ValueError(
            f"its weights are a pickle, {pickle!r}, which is never opened"
            if pickle
            else "it has no safetensors"
        )
    index = _read_json(index_file)
    shards = sorted(set(index["weight_map"].values()))
    if any(Path(shard).name != shard for shard in shards):
        raise ValueError("the index of shards points out of the folder")
    return [folder / shard for shard in shards]


def weight_tensors(folder: Path) -> dict[str, Path]:
    """The names of a base's tensors, and the files that they are in.

    Raises:
        ConfigError: The files cannot be read.
    """
    with _base_errors(folder):
        return {name: path for name, _, path in _tensors(folder)}


def _tensors(folder: Path) -> Iterator[tuple[str, TensorInfo, Path]]:
    for path in weight_files(folder):
        for name, tensor in read_header(path).items():
            yield name, tensor, path


def _read_config(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path.name} is larger than {_MAX_JSON_BYTES:,} bytes")
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise TypeError(f"{path.name} is not a JSON object")
    return content


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    text = config.get("text_config") or config
    settings = {
        name: next((text[key] for key in keys if key in text), None) for name, keys in _SETTINGS.items()
    }
    return {
        "architecture": str((config.get("architectures") or ["unknown"])[0]),
        "model_type": str(config.get("model_type", "unknown")),
        **settings,
    }


def _head(path: Path, tensor: TensorInfo) -> bytes:
    with path.open("rb") as file:
        file.seek(tensor.start)
        return file.read(min(tensor.end - tensor.start, _SAMPLE_BYTES))


@contextmanager
def _base_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RecursionError, AdapterInvalidError) as error:
        raise ConfigError(
            f"{str(folder)!r} is not a base that can be read: {error.args[-1] if error.args else error}",
            hint="A base is a folder with config.json and model.safetensors (or its shards and their index). Weights "
            "in .bin files become that with transformers' save_pretrained.",
        ) from error
