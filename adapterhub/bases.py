"""Where a base lives on disk: the shipped one, a folder of yours, or a snapshot from the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from adapterhub.errors import ConfigError

DEMO_BASE = "adapterhub-demo"
"""The name of the small base that ships with the package; cards use it in place of a path."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# What a causal language model needs, and nothing that could run code or be unpickled.
_SAFE_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def demo_base_folder() -> Path:
    """The folder of the shipped base, inside the package."""
    return Path(__file__).parent / "demo" / "base"


def locate_base(name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """Finds the folder that holds a base's files, downloading a hub snapshot if that is what the name means.

    Args:
        name: `"adapterhub-demo"`, a folder, or a hub id such as `"Qwen/Qwen3-0.6B"`.
        revision: A branch, tag or commit of a hub id; the default branch if not given.
        trust_remote_code: Also download the repository's Python files.

    Raises:
        ConfigError: There is no such folder, it holds no model, or the hub does not have it.
    """
    if str(name) == DEMO_BASE:
        return demo_base_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _model_folder(folder)
    if isinstance(name, Path) or not _HUB_ID.fullmatch(name):
        raise ConfigError(
            f"There is no base model at {str(name)!r}.",
            hint="Give a folder that holds config.json and *.safetensors, or a hub id such as 'Qwen/Qwen3-0.6B'.",
        )
    return _model_folder(_download(name, revision, trust_remote_code))


def _model_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"The folder {str(folder)!r} holds no config.json, so it is not a model.",
            hint="Point at the folder that transformers' save_pretrained wrote.",
        )
    return folder


def _download(repo: str, revision: str | None, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*_SAFE_FILES, "*.py"] if trust_remote_code else _SAFE_FILES
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The base {repo!r} is neither a folder here nor could it be had from the hub ({type(error).__name__}).",
            hint="Check the spelling and the network; for a gated model log in with `hf auth login`.",
        ) from error
