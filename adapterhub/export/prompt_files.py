"""The tokenizer, chat template and end tokens of a merged model, where the adapter's differ from the base's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub._files import os_errors_as, read_bounded
from adapterhub.base.tokenizer_files import TOKENIZER_FILES, TokenizerFiles
from adapterhub.errors import AdapterInvalidError, ConfigError
from adapterhub.registry.cards import PromptProfile

_MAX_FILE_BYTES = 64 * 2**20  # as at registration
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def prompt_files(base: Path, adapter: Path, profile: PromptProfile) -> dict[str, bytes]:
    """The files that replace the base's, so that transformers alone serves what the adapter was trained with.

    Args:
        base: The base's folder.
        adapter: The adapter's folder, with or without tokenizer files.
        profile: The adapter's prompt profile.

    Returns:
        Name -> content; empty if nothing differs.

    Raises:
        AdapterInvalidError: A tokenizer file of the adapter is damaged.
        ConfigError: A file of the base is.
    """
    config = _model_config(base)
    try:
        own = TokenizerFiles(adapter).vocabulary
        # A token without a row in the embedding would fail; the base's tokenizer stays then.
        fits = config.get("vocab_size", 0) > max(own.values(), default=0)
    except ValueError as error:
        raise AdapterInvalidError(
            f"The adapter's tokenizer files are damaged: {error}.",
            hint="Copy them again, or remove them: the base's are used then.",
        ) from error
    names = [name for name in TOKENIZER_FILES if fits and (adapter / name).exists()]
    # Not through a link: what it leads to would be published with the model.
    files = {name: read_bounded(adapter / name, _MAX_FILE_BYTES) for name in names}
    if profile.chat_template:
        files["chat_template.jinja"] = profile.chat_template.encode()
    try:
        bases = TokenizerFiles(base)
        vocabulary = {**bases.vocabulary, **(own if fits else {})}
        ends = [vocabulary[token] for token in profile.stop if token in vocabulary]
        if ends:
            defaults = bases.generation_config or {name: config.get(name) for name in _TOKEN_IDS}
            files["generation_config.json"] = _with_end_tokens(defaults, ends)
    except ValueError as error:
        raise ConfigError(
            f"A file of the base is damaged: {error}.", hint="Download the base again."
        ) from error
    return files


def _model_config(base: Path) -> dict[str, Any]:
    """The settings of a base's `config.json`; those of the text model where it has others too."""
    with os_errors_as(ConfigError, "The base's config.json cannot be read"):
        config = json.loads((base / "config.json").read_bytes())
    own = {name: value for name, value in config.items() if value is not None}
    return {**(config.get("text_config") or {}), **own}


def _with_end_tokens(settings: Mapping[str, Any], added: list[int]) -> bytes:
    """A generation config with further end tokens; it has all that `generate` stops at."""
    ends = settings.get("eos_token_id")
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    ids = [*known, *(token_id for token_id in added if token_id not in known)]
    return (json.dumps({**settings, "eos_token_id": ids}, indent=2) + "\n").encode()
