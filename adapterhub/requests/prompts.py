"""Renders a conversation as the prompt text of the base.

Four formats, chosen in this order and never silently (`adapterhub show NAME` prints the choice):

1. the card's own chat template, because an adapter answers best in the format it was trained on;
2. the base tokenizer's chat template;
3. `### Instruction:` / `### Response:` (Alpaca's format), where there is no chat template;
4. the plain `Instruction: ...` / `Response:` format, only where a card asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adapterhub.engine.tokenizer import Message, Tokenizer
from adapterhub.errors import ConfigError, InvalidRequestError
from adapterhub.registry.cards import PromptFormat

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class PromptStyle:
    """The format of a prompt and the source of that choice.

    Attributes:
        format: `"chat"`, `"instruction"` or `"plain"`.
        origin: The source: `"card"`, `"tokenizer"` or `"default"`.
        template: The chat template (Jinja) when `format` is `"chat"`.
        tool_template: The chat template for requests with tools, if the base has one of its own for them.
        stop: Strings that mark the start of a next turn, so that an answer ends before it.
    """

    format: Literal["chat", "instruction", "plain"]
    origin: Literal["card", "tokenizer", "default"]
    template: str | None = None
    stop: tuple[str, ...] = ()
    tool_template: str | None = None

    def __str__(self) -> str:
        return {
            "chat": f"chat template of the {self.origin}",
            "instruction": "### Instruction / ### Response",
            "plain": "Instruction / Response",
        }[self.format] + (" (the base has no chat template)" if self.origin == "default" else "")


def choose_style(
    tokenizer_template: str | Mapping[str, str] | None,
    card_format: PromptFormat = "auto",
    card_template: str | None = None,
) -> PromptStyle:
    """Chooses the format of a prompt, in the order of this module's docstring.

    Args:
        tokenizer_template: The base tokenizer's chat template, if it has one; or several by name, of which
            transformers takes `"tool_use"` where there are tools, else `"default"`.
        card_format: What the adapter's card asks for.
        card_template: The chat template on the adapter's card, if any.

    Raises:
        ConfigError: The card asks for a chat template and there is none.
    """
    if card_format == "instruction":
        return PromptStyle("instruction", "card", stop=("\n### Instruction:",))
    if card_format == "plain":
        return PromptStyle("plain", "card", stop=("\nInstruction:",))
    if card_template:
        return PromptStyle("chat", "card", card_template)
    if isinstance(tokenizer_template, Mapping):
        default, for_tools = tokenizer_template.get("default"), tokenizer_template.get("tool_use")
        return PromptStyle("chat", "tokenizer", default, tool_template=for_tools)
    if tokenizer_template:
        return PromptStyle("chat", "tokenizer", tokenizer_template)
    if card_format == "chat":
        raise ConfigError(
            "The card asks for a chat template, but neither the card nor the base's tokenizer has one.",
            hint="Set the card's prompt.chat_template, or prompt.format to 'instruction'.",
        )
    return PromptStyle("instruction", "default", stop=("\n### Instruction:",))


def conversation(
    prompt: str | Sequence[Message], system: str | None = None, *, may_be_empty: bool = False
) -> list[Message]:
    """Normalises a prompt to messages, with the card's system prompt unless they bring their own.

    Args:
        prompt: A text (one user message) or messages.
        system: The card's system prompt.
        may_be_empty: Whether it may have no text, because it is only counted.

    Raises:
        InvalidRequestError: There is nothing to answer, or a message has no known role or no text.
    """
    given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(given, Sequence) or not all(isinstance(message, Mapping) for message in given):
        raise InvalidRequestError(
            "A prompt is a text or a list of messages.",
            hint="A message is a mapping such as {'role': 'user', 'content': 'Hi'}.",
        )
    messages: list[Message] = list(given)
    for message in messages:
        _check_message(message)
    has_text = any(
        (message.get("content") or "").strip() or message.get("tool_calls") for message in messages
    )
    if not has_text and not may_be_empty:
        raise InvalidRequestError(
            "The prompt is empty.", hint="Give a text, or messages of which one has content."
        )
    if system and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def check_text(text: str) -> str:
    """Returns the text if it is valid Unicode.

    Raises:
        InvalidRequestError: It holds a lone surrogate, as text does that was not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            "The prompt is not valid Unicode text.", hint="Convert it to UTF-8, for example with iconv."
        ) from error
    return text


def _check_message(message: Message) -> None:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InvalidRequestError(
            f"A message has the role {role!r}.", hint=f"Known roles: {', '.join(ROLES)}."
        )
    if not isinstance(content, str | None):
        # A template would insert its Python representation.
        raise InvalidRequestError(
            f"A message's content is of type {type(content).__name__}, not a text.",
            hint="Join the texts of content that has parts.",
        )
    check_text(content or "")


def render(
    messages: Sequence[Message],
    style: PromptStyle,
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """Renders a conversation in a style.

    Args:
        messages: The turns, oldest first.
        style: From `choose_style`.
        tokenizer: The base's tokenizer, which knows its special tokens.
        tools: JSON-Schema descriptions of functions that the assistant may call; only chat templates can show them.
        add_generation_prompt: End with the start of the assistant's message, as transformers does.

    Raises:
        InvalidRequestError: Tools without a chat template, or a template that refuses these messages.
    """
    if style.format == "chat":
        return _render_chat(messages, style, tokenizer, tools, add_generation_prompt)
    if tools:
        raise InvalidRequestError(
            "Tools can only be shown to a base through a chat template, and there is none.",
            hint="Set prompt.chat_template on the adapter's card.",
        )
    return _render_turns(messages, style, tokenizer.eos_token or "", add_generation_prompt)


def _render_chat(
    messages: Sequence[Message],
    style: PromptStyle,
    tokenizer: Tokenizer,
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
) -> str:
    from jinja2.exceptions import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            chat_template=(style.tool_template if tools else None) or style.template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"The chat template refuses these messages: {error}",
            hint="Templates often want turns to alternate, starting with the user.",
        ) from error
    return str(text)


def _render_turns(
    messages: Sequence[Message], style: PromptStyle, end: str, add_generation_prompt: bool
) -> str:
    ask, answer, gap = (
        ("### Instruction:\n", "### Response:\n", "\n\n")
        if style.format == "instruction"
        else ("Instruction: ", "Response: ", "\n")
    )
    parts = []
    for message in messages:
        content = str(message.get("content") or "")
        prefix = {"user": ask, "tool": ask, "assistant": answer, "system": ""}[message["role"]]
        parts.append(prefix + content + (end if message["role"] == "assistant" else ""))
    # No space after the last colon: a tokenizer puts it at the head of the answer's first word.
    parts += [answer.rstrip(" ")] if add_generation_prompt else []
    return gap.join(parts)
