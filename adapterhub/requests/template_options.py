"""What a request says about its chat template, under vLLM's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypedDict

from adapterhub.errors import InvalidRequestError

MAX_VARIABLES_CHARACTERS = 16_384
_OURS = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"}
)


class TemplateArguments(TypedDict, total=False):
    """Arguments of `TemplateOptions`."""

    chat_template_kwargs: Mapping[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None


TEMPLATE_ARGUMENTS = tuple(TemplateArguments.__annotations__)


@dataclass(frozen=True)
class TemplateOptions:
    """How a conversation is rendered; construct it with `TemplateOptions.of`.

    Attributes:
        variables: Further variables of the chat template, such as `enable_thinking`.
        add_generation_prompt: End with the start of the assistant's message.
        continue_final_message: End within the last message, which the answer continues.
    """

    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Checks arguments of a call.

        Args:
            arguments: `TemplateArguments`: `chat_template_kwargs`, at most 16,384 characters as JSON;
                `add_generation_prompt`, by default the opposite of `continue_final_message`.

        Raises:
            InvalidRequestError: One is of another type, too large, or sets what is the hub's; or two contradict.
        """
        given = arguments.get("chat_template_kwargs")
        variables = _checked_variables({} if given is None else given)
        continues = _checked_switch("continue_final_message", arguments, default=False)
        adds = _checked_switch("add_generation_prompt", arguments, default=not continues)
        if continues and adds:
            raise InvalidRequestError(
                "add_generation_prompt begins a new message, and continue_final_message goes on with the last one.",
                hint="Give one of them.",
            )
        return cls(variables, adds, continues)


def _checked_switch(name: str, arguments: Mapping[str, Any], *, default: bool) -> bool:
    value = arguments.get(name)
    if not isinstance(value, bool | None):
        raise InvalidRequestError(f"{name}= takes true or false, not {type(value).__name__}.")
    return default if value is None else value


def _checked_variables(variables: object) -> Mapping[str, Any]:
    if not isinstance(variables, Mapping) or not all(
        isinstance(name, str) and name.isidentifier() for name in variables
    ):
        raise InvalidRequestError(
            "chat_template_kwargs= takes a mapping from names to values of a chat template."
        )
    ours = sorted(_OURS & variables.keys())
    if ours:
        raise InvalidRequestError(
            f"chat_template_kwargs cannot set {', '.join(ours)}.", hint="Give it as an argument of its own."
        )
    size = len(as_json(variables, "chat_template_kwargs"))
    if size > MAX_VARIABLES_CHARACTERS:
        raise InvalidRequestError(
            f"chat_template_kwargs is larger than {MAX_VARIABLES_CHARACTERS:,} characters of JSON."
        )
    return variables


def as_json(value: object, name: str) -> str:
    """A value as JSON text; a chat template would raise what is no JSON, or write it.

    Args:
        value: The value.
        name: The argument it was given as; for the message.

    Raises:
        InvalidRequestError: It has no JSON form, or is not valid Unicode.
    """
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{name}= is not JSON: {type(error).__name__}: {error!s:.100}.") from error
    return text
