"""How many tokens a conversation has, written with the chat template of a base."""

from __future__ import annotations

from typing import Self

from adapterhub.dataset.records import Record
from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.requests.encoding import PromptEncoder
from adapterhub.requests.prompts import choose_style


class TokenCounter:
    """Counts the tokens of records as serving writes them: with the chat template, tools included.

    Args:
        tokenizer: The base's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encoder = PromptEncoder(tokenizer)
        self._style = choose_style(tokenizer.chat_template)

    @classmethod
    def of_base(cls, base: str) -> Self:
        """A counter with the tokenizer of a base; its weights are not loaded.

        Args:
            base: `adapterhub-demo`, a model folder, or a hub id.

        Raises:
            ConfigError: There is no such base, or its tokenizer cannot be loaded.
        """
        from adapterhub.base.loading import load_tokenizer

        return cls(load_tokenizer(base))

    def __call__(self, record: Record) -> int:
        """The number of tokens.

        Raises:
            InvalidRequestError: The chat template refuses the record, or its text cannot be encoded.
        """
        messages = [message.model_dump(exclude_none=True) for message in record.messages]
        prompt = self._encoder.render(messages, self._style, tools=record.tools, add_generation_prompt=False)
        return len(self._encoder.encode(prompt))
