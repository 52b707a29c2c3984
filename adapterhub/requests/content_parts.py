"""Chat templates that want a message's content in parts, as the processors of vision-language models pass it.

They read a text's characters as parts of an unknown type, and pass over it without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from adapterhub.requests.chat_template import render_template

_PROBE = "some text"
_NOTHING = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "")


@lru_cache(maxsize=32)
def wants_parts(template: str) -> bool:
    """Whether a chat template (Jinja) shows a user's text in parts only."""
    return not _shows(template, _PROBE) and _shows(template, [_part(_PROBE)])


def in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose text is the only part of its content."""
    content = message.get("content")
    return {**message, "content": [_part(content)]} if isinstance(content, str) and content else dict(message)


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _shows(template: str, content: object) -> bool:
    messages = [{"role": "user", "content": content}]
    try:
        return _PROBE in render_template(template, {**_NOTHING, "messages": messages}, None)
    except Exception:  # noqa: BLE001 - a template raises whatever its expressions do; rendering a prompt reports it
        return False
