"""The interface of an engine's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""One message, `{"role": "user", "content": "..."}`; one by the assistant may have `tool_calls`."""


class Tokenizer(Protocol):
    """The part of transformers' tokenizers that adapterhub uses."""

    chat_template: Any
    eos_token: str | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...

    def get_added_vocab(self) -> dict[str, int]: ...

    @property
    def all_special_tokens(self) -> Sequence[str]: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...

    @property
    def special_tokens_map(self) -> Mapping[str, Any]: ...

    def get_vocab(self) -> Mapping[str, int]: ...


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The added tokens that no text has, such as `<|im_end|>`: content -> token id."""
    added = tokenizer.added_tokens_decoder.items()
    return {token.content: token_id for token_id, token in added if token.special}
