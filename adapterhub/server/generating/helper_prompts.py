"""Prompts that chat front ends send by themselves, for a conversation's title, tags or follow-up questions.

They go to the model of the conversation. With `auto` they are a question to the router about a text that no adapter was
made for, and that quotes the conversation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub.server.generating.model_names import AUTO, adapter_of
from adapterhub.server.state import ServerState

_OPEN_WEBUI = re.compile(r"\s*### Task:\s")
_LIBRE_CHAT = re.compile(r".{0,200}\b5-word-or-less title\b", re.DOTALL)


def chat_adapter(model: str, messages: Sequence[Mapping[str, Any]], state: ServerState) -> str | None:
    """The `adapter=` for a conversation: as `adapter_of`, but helper prompts to `auto` may go to the base.

    Args:
        model: As in the request.
        messages: The conversation.
        state: Whose settings say so.

    Raises:
        AdapterNotFoundError: It does not exist for the caller.
    """
    adapter = adapter_of(model, state)
    to_base = adapter == AUTO and state.config.helper_prompts == "base" and is_helper_prompt(messages)
    return None if to_base else adapter


def is_helper_prompt(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether Open WebUI or LibreChat wrote the last message, and not a person.

    Args:
        messages: The conversation.
    """
    content = messages[-1]["content"] if messages and messages[-1]["role"] == "user" else ""
    of_open_webui = _OPEN_WEBUI.match(content) and "<chat_history>" in content
    return bool(of_open_webui or _LIBRE_CHAT.match(content))
