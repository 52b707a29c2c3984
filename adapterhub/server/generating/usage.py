"""The `usage` of answers and streams."""

from __future__ import annotations

from typing import Any

from adapterhub.server.protocol.sampling import StreamOptions


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


class StreamUsage:
    """Counts the tokens of a stream, and says so where the request asked for it.

    Args:
        options: What the request asked for.
        prompt_tokens: Tokens of the prompt.
    """

    def __init__(self, options: StreamOptions | None, prompt_tokens: int) -> None:
        self._options = options or StreamOptions()
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0

    def count(self, tokens: int) -> dict[str, Any]:
        """Adds tokens of an answer, and gives what their chunk says: nothing unless it was asked for.

        Clients that did not ask for usage fail on a chunk that has it.

        Args:
            tokens: How many.
        """
        self._completion_tokens += tokens
        if self.is_continuous:
            return {"usage": self._so_far}
        return {"usage": None} if self._options.include_usage else {}

    @property
    def is_continuous(self) -> bool:
        """Whether each chunk says something else."""
        return bool(self._options.continuous_usage_stats)

    @property
    def last_chunk(self) -> dict[str, Any] | None:
        """What the chunk after all choices has; None if there is no such chunk."""
        return {"choices": [], "usage": self._so_far} if self._options.include_usage else None

    @property
    def _so_far(self) -> dict[str, Any]:
        return usage_object(self._prompt_tokens, self._completion_tokens)
