"""How many tokens a conversation has, written with the chat template of a base."""

from __future__ import annotations

from typing import Self

from adapterhub.base.locating import locate_base
from adapterhub.dataset.records import Record
from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.errors import ConfigError
from adapterhub.requests.encoding import PromptEncoder
from adapterhub.requests.prompts import choose_style


class TokenCounter:
    """Counts the tokens of records as serving writes them: with the chat template, tools included.

    Args:
        tokenizer: The base's.
        name: What it goes by on the data card.
    """

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self.name = name
        self._encoder = PromptEncoder(tokenizer)
        self._style = choose_style(tokenizer.chat_template)

    @classmethod
    def of_base(cls, base: str, *, revision: str | None = None) -> Self:
        """A counter with the tokenizer of a base; its weights are not loaded.

        Args:
            base: `adapterhub-demo`, a model folder, or a hub id.
            revision: A branch, tag or commit of a hub id.

        Raises:
            ConfigError: There is no such base, or its tokenizer cannot be loaded.
        """
        from transformers import AutoTokenizer

        folder = locate_base(base, revision=revision)
        try:
            return cls(AutoTokenizer.from_pretrained(folder), base)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"The tokenizer of base {base!r} cannot be loaded ({type(error).__name__}).",
                hint="Its folder needs tokenizer.json and tokenizer_config.json.",
            ) from error

    def __call__(self, record: Record) -> int:
        """The number of tokens.

        Raises:
            InvalidRequestError: The chat template refuses the record, or its text cannot be encoded.
        """
        messages = [message.model_dump(exclude_none=True) for message in record.messages]
        prompt = self._encoder.render(messages, self._style, tools=record.tools, add_generation_prompt=False)
        return len(self._encoder.encode(prompt))
