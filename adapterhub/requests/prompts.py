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
from adapterhub.errors import ConfigError, InvalidRequestError, RequestTooLongError
from adapterhub.registry.cards import PromptFormat

_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_CONTINUED = "CONTINUE_FINAL_MESSAGE_TAG "
"""Behind the text to continue while a template is rendered, as in transformers; its space shows whether one strips."""
ROLES = ("system", "user", "assistant", "tool")
_MAX_REASON = 500
"""Characters of a template's own error, which may be of any length."""


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
    prompt: str | Sequence[Any], system: str | None = None, *, may_be_empty: bool = False
) -> list[Message]:
    """Normalises a prompt to messages, with the card's system prompt unless they bring their own.

    Args:
        prompt: A text (one user message) or messages.
        system: The card's system prompt.
        may_be_empty: Whether it may have no text, because it is only counted.

    Raises:
        InvalidRequestError: There is nothing to answer, or a message has no known role or no text.
    """
    given: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
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
    if (kind := _other_than_text(content)) is not None:
        raise InvalidRequestError(
            f"A message has a part of type {kind!r:.40}; only texts are answered, also by a vision-language base.",
            hint="Describe it in words, or serve the base where its vision tower runs.",
        )
    if not isinstance(content, str | None):
        # A template would insert its Python representation.
        raise InvalidRequestError(
            f"A message's content is of type {type(content).__name__}, not a text.",
            hint="Join the texts of content that has parts.",
        )
    check_text(content or "")


def _other_than_text(content: object) -> str | None:
    """The type of the first part of a content in parts that is not text, as clients of vision-language models send."""
    parts = content if isinstance(content, list | tuple) else ()
    kinds = (part.get("type") for part in parts if isinstance(part, Mapping))
    return next((kind for kind in kinds if isinstance(kind, str) and kind != "text"), None)


def render(
    messages: Sequence[Message],
    style: PromptStyle,
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    max_characters: int | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Renders a conversation in a style.

    A chat template is rendered as transformers does, within limits on its time and its values; see
    `requests/chat_template.py`.

    Args:
        messages: The turns, oldest first.
        style: From `choose_style`.
        tokenizer: The base's tokenizer, which knows its special tokens.
        tools: JSON-Schema descriptions of functions that the assistant may call; only chat templates can show them.
        add_generation_prompt: End with the start of the assistant's message, as transformers does.
        continue_final_message: End within the last message, as transformers does, so that an answer continues it; give
            it without `add_generation_prompt`.
        max_characters: The longest text that may fit the context; 64 million if not given.
        variables: Further variables of a chat template, such as `enable_thinking`.

    Raises:
        InvalidRequestError: Tools without a chat template, a template that refuses these messages or a limit, or a
            last message that cannot be continued.
        RequestTooLongError: The text is longer than `max_characters`.
    """
    if continue_final_message:
        messages = [*messages[:-1], _continued(messages[-1])]
    if style.format == "chat":
        template = (style.tool_template if tools else None) or style.template
        known = {
            **tokenizer.special_tokens_map,
            **(variables or {}),
            "messages": _template_messages(messages, template),
            "tools": plain_data(list(tools)) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        text = _render_chat(template, known, max_characters)
        return _cut_at_tag(text) if continue_final_message else text
    if tools:
        raise InvalidRequestError(
            "Tools can only be shown to a base through a chat template, and there is none.",
            hint="Set prompt.chat_template on the adapter's card.",
        )
    text = _render_turns(messages, style, tokenizer.eos_token or "", add_generation_prompt)
    return check_length(_cut_at_tag(text) if continue_final_message else text, max_characters)


def _continued(message: Message) -> Message:
    content = message.get("content")
    if not isinstance(content, str):
        raise InvalidRequestError("continue_final_message needs a last message with a text.")
    return {**message, "content": content + _CONTINUED}


def _cut_at_tag(text: str) -> str:
    """The text up to the tag; without the space before it where the template has stripped the tag's own."""
    before, found, after = text.rpartition(_CONTINUED.rstrip())
    if not found:
        raise InvalidRequestError("The chat template changes the last message, so it cannot be continued.")
    return before if after.startswith(" ") else before.rstrip()


def check_length(text: str, max_characters: int | None) -> str:
    """Returns a text that may fit the context, before anything that takes time is done with it.

    Raises:
        RequestTooLongError: It is longer than `max_characters`.
    """
    if max_characters is not None and len(text) > max_characters:
        raise _too_long(max_characters)
    return text


def _too_long(max_characters: int | None) -> RequestTooLongError:
    return RequestTooLongError(
        f"The prompt has more than {max_characters or 0:,} characters, so it does not fit the context.",
        hint="Shorten the prompt.",
    )


def _render_chat(template: str | None, variables: Mapping[str, Any], max_characters: int | None) -> str:
    from adapterhub.requests.chat_template import render_template
    from adapterhub.requests.template_limits import RenderingLimitError, TextTooLongError

    if template is None or not variables["messages"]:
        raise InvalidRequestError("There is no chat template, or no message to render with it.")
    try:
        return render_template(template, variables, max_characters)
    except TextTooLongError as error:
        raise _too_long(max_characters) from error
    except RenderingLimitError as error:
        raise InvalidRequestError(
            f"The chat template exceeds a limit: {error}.",
            hint="Use another template; see `adapterhub show`.",
        ) from error
    except Exception as error:  # a template raises whatever its expressions do
        raise InvalidRequestError(
            f"The chat template refuses these messages: {error!s:.{_MAX_REASON}}",
            hint="Templates often want turns to alternate, starting with the user.",
        ) from error


def _template_messages(messages: Sequence[Message], template: str | None) -> list[dict[str, Any]]:
    from adapterhub.requests.content_parts import in_parts, wants_parts

    passed = [_template_message(message) for message in messages]
    return [in_parts(message) for message in passed] if template and wants_parts(template) else passed


def _template_message(message: Message) -> dict[str, Any]:
    """A message as transformers passes it: without empty fields, and with its reasoning under each of its names."""
    given: dict[str, Any] = {key: plain_data(value) for key, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING_FIELDS if name in given), None)
    return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}


def plain_data(value: Any) -> Any:
    """A copy of JSON-like data in exact built-in types, so that a template calls no method of another object."""
    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value)
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case Mapping():
            return {plain_data(key): plain_data(each) for key, each in value.items()}
        case list() | tuple():
            return [plain_data(each) for each in value]
    return plain_data(value.model_dump()) if hasattr(value, "model_dump") else f"<{type(value).__name__}>"


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
