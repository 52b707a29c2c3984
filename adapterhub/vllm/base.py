"""What is known of a base that vLLM serves: tokenizer, end tokens and identity, from its files without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.errors import ConfigError


@dataclass(frozen=True)
class ServedBase:
    """The base of an engine whose weights are elsewhere.

    Attributes:
        name: The name, path or hub id that it was loaded by.
        tokenizer: Its tokenizer.
        fingerprint: Identifies it independently of name and path; None for one without files.
        vocabulary_size: Width of its logits.
        end_token_ids: Tokens that end an answer.
        generation_config: The settings in its `generation_config.json`.
    """

    name: str
    tokenizer: Any
    fingerprint: BaseFingerprint | None
    vocabulary_size: int
    end_token_ids: frozenset[int] = frozenset()
    generation_config: Mapping[str, Any] = field(default_factory=dict)


def load_served_base(name: str | Path, *, revision: str | None = None) -> ServedBase:
    """Reads a base's settings, tokenizer and fingerprint.

    Args:
        name: `"adapterhub-demo"`, a folder, or a hub id, whose snapshot is downloaded if it is not in the cache.
        revision: A branch, tag or commit of a hub id.

    Raises:
        ConfigError: There is no such base, or its files cannot be read.
    """
    # transformers takes seconds to import.
    from transformers import AutoConfig

    from adapterhub.base.loading import LOADING_ERRORS, end_token_ids, generation_settings, load_tokenizer
    from adapterhub.base.locating import locate_base

    folder = locate_base(name, revision=revision)
    fingerprint = BaseFingerprint.of(folder)
    tokenizer = load_tokenizer(name, revision=revision)
    try:
        config = AutoConfig.from_pretrained(folder)
        settings = generation_settings(folder, config)
    except LOADING_ERRORS as error:
        raise ConfigError(f"The settings of base {str(name)!r} could not be read: {error}") from error
    return ServedBase(
        name=str(name),
        tokenizer=tokenizer,
        fingerprint=fingerprint,
        vocabulary_size=int(config.get_text_config().vocab_size),
        end_token_ids=end_token_ids(settings, tokenizer),
        generation_config=settings.to_diff_dict(),
    )
