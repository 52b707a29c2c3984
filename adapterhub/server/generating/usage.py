"""The `usage` of answers."""

from __future__ import annotations

from typing import Any


def usage_object(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """OpenAI's `usage`.

    Args:
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens generated, of all answers.
    """
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
