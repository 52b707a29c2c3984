"""llama.cpp's ways to split text before byte-level merges, by the names that a GGUF file gives them.

A file holds such a name and no pattern. transformers' patterns are looked up here; where one is not known, the caller
tries them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adapterhub.errors import ExportError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDINGS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_ENDINGS}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_PUNCTUATION}|{_ENDINGS}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = rf"{_CASED}{_UPPER}*{_LOWER}+|{_CASED}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDINGS}"
_GPT4O = (
    rf"{_CASED}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_CASED}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDINGS}"
)

SPLITS: dict[str, tuple[tuple[str, ...], bool]] = {
    "gpt-2": ((_GPT2,), False),
    "smollm": ((r"\p{N}", _GPT2), False),
    "llama-bpe": ((_LLAMA3,), True),
    "dbrx": ((_LLAMA3,), False),
    "qwen2": ((_QWEN2,), False),
    "tekken": ((_TEKKEN,), True),
    "gpt-4o": ((_GPT4O,), False),
    "superbpe": ((r"\p{N}+", r"(?=(\d{3})+(?!\d))"), False),
}
"""Name -> the patterns, one after the other, and whether a piece that is a token as a whole is not merged."""


def patterns(content: dict[str, Any]) -> tuple[str, ...]:
    """The patterns by which a tokenizer splits text.

    Args:
        content: Of `tokenizer.json`.

    Raises:
        ExportError: It changes text otherwise, which llama.cpp does not.
    """
    for step in _steps(content.get("normalizer"), "normalizers"):
        if step["type"] not in ("NFC",):  # most text is in this form already
            raise _other(f"normalises text ({step['type']})")
    found = [_pattern(step) for step in _steps(content.get("pre_tokenizer"), "pretokenizers")]
    return tuple(pattern for pattern in found if pattern)


def split_name(content: dict[str, Any]) -> str | None:
    """llama.cpp's name of the way that a byte-level tokenizer splits text; None if it has none.

    Args:
        content: Of `tokenizer.json`.

    Raises:
        ExportError: The tokenizer changes text otherwise, which llama.cpp does not.
    """
    wanted = (patterns(content), bool(content["model"].get("ignore_merges")))
    return next((name for name, split in SPLITS.items() if split == wanted), None)


def _steps(one: dict[str, Any] | None, parts: str) -> Iterator[dict[str, Any]]:
    if one is not None and one["type"] == "Sequence":
        for part in one[parts]:
            yield from _steps(part, parts)
    elif one is not None:
        yield one


def _pattern(step: dict[str, Any]) -> str | None:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(splits)}:
            return _GPT2 if splits else None
        case {"type": "Digits", "individual_digits": bool(each)}:
            return r"\p{N}" if each else r"\p{N}+"
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Removed", "invert": True}:
            return pattern  # keeps what matches, which is everything
        case {"type": "ByteLevel"}:
            raise _other("puts a space before every text")
    raise _other(f"splits text by {step['type']}")


def _other(what: str) -> ExportError:
    return ExportError(
        f"The tokenizer {what}, which llama.cpp does not.",
        hint="Serve the adapter with adapterhub, vLLM or transformers.",
    )
