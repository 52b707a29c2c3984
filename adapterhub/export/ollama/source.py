"""The prompt format that a template for Ollama is derived from, rendered as adapterhub and transformers do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.errors import InvalidRequestError
from adapterhub.export.ollama.conversations import Conversation
from adapterhub.requests.prompts import PromptStyle, render

_PADDED = " \n a \n "


@dataclass(frozen=True)
class _SpecialTokens:
    """What rendering needs of a tokenizer."""

    special_tokens_map: Mapping[str, str]

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens_map.get("eos_token")


@dataclass(frozen=True)
class PromptSource:
    """A prompt format, and how its prompts are given to llama.cpp.

    Attributes:
        style: From `adapterhub.requests.prompts.choose_style`.
        special_tokens: Those that it writes, such as `bos_token`.
        added: The token that llama.cpp puts before a prompt itself, which is left out then.
    """

    style: PromptStyle
    special_tokens: Mapping[str, str]
    added: str = ""

    @property
    def has_tools(self) -> bool:
        return any("tools" in text for text in (self.style.template or "", self.style.tool_template or ""))

    @property
    def has_thinking_switch(self) -> bool:
        return "enable_thinking" in (self.style.template or "")

    @property
    def lacks_added(self) -> bool:
        """Whether llama.cpp begins prompts with a token with which these do not begin."""
        return bool(self.added) and not self._rendered(_asking("a")).startswith(self.added)

    def render(self, conversation: Conversation) -> str:
        """The prompt for Ollama; where an answer has begun, up to its end, as with `continue_final_message`.

        Raises:
            InvalidRequestError: The chat template refuses the conversation.
        """
        return self._rendered(conversation).removeprefix(self.added)

    def _rendered(self, conversation: Conversation) -> str:
        thinks = conversation.think is not None and self.has_thinking_switch
        variables: dict[str, Any] = {"enable_thinking": conversation.think} if thinks else {}
        text = render(
            conversation.messages,
            self.style,
            cast(Tokenizer, _SpecialTokens(self.special_tokens)),
            tools=conversation.tools or None,
            add_generation_prompt=not conversation.continues,
            variables=variables,
        )
        return _continued(text, conversation) if conversation.continues else text

    def try_render(self, conversation: Conversation) -> str | None:
        """The prompt; None if the chat template refuses the conversation."""
        try:
            return self.render(conversation)
        except InvalidRequestError:
            return None

    def strips_contents(self) -> bool:
        """Whether space around a question or an answer is left out."""
        asked, answer = _asking(_PADDED), {"role": "assistant", "content": _PADDED}
        answered = Conversation((*_asking("b").messages, answer, *_asking("c").messages))
        return any(_PADDED not in (self.try_render(one) or _PADDED) for one in (asked, answered))


def _asking(content: str) -> Conversation:
    return Conversation(({"role": "user", "content": content},))


def _continued(text: str, conversation: Conversation) -> str:
    begun = (conversation.messages[-1].get("content") or "").strip()
    if begun not in text:
        raise InvalidRequestError("The chat template changes the answer that has begun.")
    return text[: text.rindex(begun) + len(begun)]
