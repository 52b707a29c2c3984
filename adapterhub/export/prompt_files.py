"""The tokenizer, chat template and end tokens of a merged model, where the adapter's differ from the base's."""

from __future__ import annotations

import json
from pathlib import Path

from adapterhub._files import read_bounded
from adapterhub.base.tokenizer_files import TOKENIZER_FILES, TokenizerFiles
from adapterhub.registry.cards import PromptProfile

_MAX_FILE_BYTES = 64 * 2**20  # as at registration
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_prompt_files(out: Path, adapter: Path, profile: PromptProfile) -> None:
    """Changes a copy of the base's files to what the adapter was trained with, so that transformers alone serves it.

    Args:
        out: The folder with a copy of the base's `config.json`, tokenizer files and generation config.
        adapter: The adapter's folder, with or without tokenizer files.
        profile: The adapter's prompt profile.
    """
    if _rows(out) > max(TokenizerFiles(adapter).vocabulary.values(), default=0):
        # Otherwise it has tokens without a row in the embedding, which would fail; the base's tokenizer stays.
        for name in TOKENIZER_FILES:
            if (adapter / name).exists():
                # Not through a link: what it leads to would be published with the model.
                (out / name).write_bytes(read_bounded(adapter / name, _MAX_FILE_BYTES))
    if profile.chat_template:
        (out / "chat_template.jinja").write_text(profile.chat_template, encoding="utf-8")
    _write_end_tokens(out, profile.stop)


def _rows(out: Path) -> int:
    config = json.loads((out / "config.json").read_bytes())
    return int((config.get("text_config") or config)["vocab_size"])


def _write_end_tokens(out: Path, stop: tuple[str, ...]) -> None:
    """Adds the stops that are tokens to the generation config, which is all that `generate` stops at."""
    vocabulary = TokenizerFiles(out).vocabulary
    added = [vocabulary[token] for token in stop if token in vocabulary]
    if not added:
        return
    path, config = out / "generation_config.json", json.loads((out / "config.json").read_bytes())
    settings = (
        json.loads(path.read_bytes()) if path.is_file() else {name: config.get(name) for name in _TOKEN_IDS}
    )
    ends = settings.get("eos_token_id")
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    settings["eos_token_id"] = [*known, *(token_id for token_id in added if token_id not in known)]
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
