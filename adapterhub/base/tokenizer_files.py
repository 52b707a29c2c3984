"""What the tokenizer files of a base or an adapter say, read without loading a tokenizer.

transformers writes them with `save_pretrained`. It takes seconds to import and runs on trusted files; an adapter's are
not, and registering needs neither. Only a base without `tokenizer.json` is read through transformers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from adapterhub._files import os_errors_as
from adapterhub.errors import ConfigError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""The files that are read here."""

_MAX_BYTES = 64 * 2**20
_SLOW_FILES = ("tokenizer.model", "spiece.model", "vocab.json")
_TEMPLATE_VARIABLES = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer files of a folder. A file that is missing says nothing; one that is malformed is a `ValueError`.

    Attributes:
        folder: The folder of a base or an adapter.
    """

    folder: Path

    @cached_property
    def chat_templates(self) -> dict[str, str]:
        """The chat templates (Jinja) by name; most bases have one, `"default"`."""
        template = self.folder / "chat_template.jinja"
        if template.is_file():
            more = sorted((self.folder / "additional_chat_templates").glob("*.jinja"))
            named = {path.stem: _read_text(path) for path in more}
            return {**named, "default": _read_text(template)}
        stored = self._config.get("chat_template") or self.processor_chat_template
        if isinstance(stored, list):
            return {str(one["name"]): str(one["template"]) for one in stored if _names_template(one)}
        return {"default": stored} if isinstance(stored, str) and stored else {}

    @property
    def processor_chat_template(self) -> str | None:
        """The chat template in `chat_template.json`, where older processors of vision-language models have it."""
        template = _read_json(self.folder / "chat_template.json").get("chat_template")
        return template if isinstance(template, str) and template else None

    @cached_property
    def chat_template_digest(self) -> str:
        """The sha256 of all chat templates; without one, that of none."""
        templates = {name: text.rstrip("\n") for name, text in self.chat_templates.items()}
        return f"sha256:{hashlib.sha256(json.dumps(templates, sort_keys=True).encode()).hexdigest()}"

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, added tokens included; empty if no file has it."""
        return {**_vocabulary(self._tokenizer), **self.added_tokens}

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """The tokens, such as special ones, that were added to the trained vocabulary, and their ids."""
        return dict(
            _added_tokens(self._tokenizer, self._config, _read_json(self.folder / "added_tokens.json"))
        )

    @cached_property
    def tokenizer_digest(self) -> str | None:
        """The sha256 of all tokens, their ids and the merges; None if they are not known.

        Normalisation and splitting are left out: the same tokenizer has them in other words when it is saved again.
        """
        return _tokenizer_digest(self.folder.resolve(), self._stamps)

    @property
    def _stamps(self) -> tuple[tuple[str, int, int, int, int], ...]:
        """What shows that a file has changed, for the files that the digest is made of."""
        names = (*TOKENIZER_FILES, *_SLOW_FILES, "merges.txt", "config.json")
        found = ((name, self.folder / name) for name in names)
        stats = ((name, path.stat()) for name, path in found if path.is_file())
        return tuple(
            (name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for name, stat in stats
        )

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """The tokens that chat templates know as variables, such as `eos_token`."""
        given = {**_read_json(self.folder / "special_tokens_map.json"), **self._config}
        named = {name: given[name] for name in _TEMPLATE_VARIABLES if name in given}
        contents = {name: _mapping(token).get("content", token) for name, token in named.items()}
        return {name: token for name, token in contents.items() if isinstance(token, str) and token}

    @cached_property
    def end_tokens(self) -> frozenset[str]:
        """The tokens that end an answer: the tokenizer's end token and those of `generation_config.json`."""
        ids = self.generation_config.get("eos_token_id")
        wanted = ids if isinstance(ids, list) else [ids] if isinstance(ids, int) else []
        tokens = (
            {token for token, token_id in self.vocabulary.items() if token_id in wanted} if wanted else set()
        )
        end = self.special_tokens.get("eos_token")
        return frozenset(tokens | ({end} if end else set()))

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """The content of `generation_config.json`."""
        return _read_json(self.folder / "generation_config.json")

    @cached_property
    def _config(self) -> dict[str, Any]:
        return _read_json(self.folder / "tokenizer_config.json")

    @cached_property
    def _tokenizer(self) -> dict[str, Any]:
        content = _read_json(self.folder / "tokenizer.json")
        is_base = (self.folder / "config.json").is_file()
        if content or not is_base or not any((self.folder / name).is_file() for name in _SLOW_FILES):
            return content
        return _convert(self.folder)


@lru_cache(maxsize=16)
def _tokenizer_digest(folder: Path, stamps: object) -> str | None:
    """Kept for the last few folders: each registration asks for the base's, which may take half a second."""
    files = TokenizerFiles(folder)
    if not files.vocabulary:
        return None
    tokens = sorted(files.vocabulary.items(), key=lambda token: (token[1], token[0]))
    content = json.dumps([tokens, _merges(files._tokenizer)])
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def _convert(folder: Path) -> dict[str, Any]:
    """The content of the `tokenizer.json` that transformers makes of other files."""
    from transformers import AutoTokenizer

    try:
        # False, or transformers asks on the terminal whether to run the folder's code.
        text = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer.to_str()
    except Exception:  # noqa: BLE001 - what converters raise is anything; the base's own loading reports it
        return {}
    content: dict[str, Any] = json.loads(text)
    return content


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = _mapping(tokenizer.get("model")).get("vocab")
    if isinstance(vocabulary, list):  # Unigram: [token, score] in the order of ids
        return {
            str(entry[0]): index
            for index, entry in enumerate(vocabulary)
            if isinstance(entry, list) and entry
        }
    return {token: token_id for token, token_id in _mapping(vocabulary).items() if isinstance(token_id, int)}


def _merges(tokenizer: Mapping[str, Any]) -> list[str]:
    merges = _mapping(tokenizer.get("model")).get("merges")
    pairs = merges if isinstance(merges, list) else []
    return [" ".join(map(str, pair)) if isinstance(pair, list) else str(pair) for pair in pairs]


def _added_tokens(
    tokenizer: Mapping[str, Any], config: Mapping[str, Any], added: Mapping[str, Any]
) -> Iterator[tuple[str, int]]:
    yield from ((token, token_id) for token, token_id in added.items() if isinstance(token_id, int))
    decoder = _mapping(config.get("added_tokens_decoder"))
    listed = tokenizer.get("added_tokens")
    entries = [
        *(
            {**_mapping(entry), "id": int(token_id)}
            for token_id, entry in decoder.items()
            if token_id.isdecimal()
        ),
        *(listed if isinstance(listed, list) else []),
    ]
    for entry in map(_mapping, entries):
        if isinstance(entry.get("content"), str) and isinstance(entry.get("id"), int):
            yield entry["content"], entry["id"]


def _names_template(entry: object) -> bool:
    return isinstance(entry, Mapping) and {"name", "template"} <= entry.keys()


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read_text(path))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return content


def _read_text(path: Path) -> str:
    with os_errors_as(ConfigError, f"{path.name} cannot be read"):
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{path.name} is larger than {_MAX_BYTES:,} bytes")
        return path.read_text(encoding="utf-8")
