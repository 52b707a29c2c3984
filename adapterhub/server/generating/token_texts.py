"""The text of single tokens, for log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.engine.tokenizer import Tokenizer

_REPLACEMENT_CHARACTER = "\ufffd"
_CONTEXT = "a"
_MAX_KEPT = 1 << 16


class TokenTexts:
    """Token id -> its text as it stands inside a text; texts are kept. Any thread may call it.

    Args:
        tokenizer: Decodes tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Some tokenizers drop the space at the start of a text, so a token is decoded after another one.
        self._context = tokenizer.encode(_CONTEXT, add_special_tokens=False)
        self._start = len(self._decode(self._context))
        self._texts: dict[int, str] = {}

    def __getitem__(self, token_id: int) -> str:
        text = self._texts.get(token_id)
        if text is None:
            text = self._decode([*self._context, token_id])[self._start :]
            if len(self._texts) < _MAX_KEPT:
                self._texts[token_id] = text
        return text

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)


def text_bytes(text: str) -> list[int] | None:
    """UTF-8 bytes of a token's text; None if the token holds a part of a character."""
    return None if _REPLACEMENT_CHARACTER in text else list(text.encode())
