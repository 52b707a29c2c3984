"""The `usage` of answers and streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from adapterhub.requests.generation import Generation
from adapterhub.server.protocol.sampling import StreamOptions


def usage_of(generations: Iterable[Generation]) -> dict[str, Any]:
    """The `usage` of whole answers.

    Args:
        generations: One for each prompt.
    """
    usages = [generation.usage for generation in generations]
    return _usage(
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
    )


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

    def last_chunk(self, generations: Iterable[Generation | None]) -> dict[str, Any] | None:
        """What the chunk after all choices has; None if there is no such chunk.

        Args:
            generations: The answers; None is one that was aborted.
        """
        if not self._options.include_usage:
            return None
        cached = sum(generation.usage.cached_tokens for generation in generations if generation)
        return {
            "choices": [],
            "usage": _usage(self._prompt_tokens, self._completion_tokens, cached),
        }

    @property
    def _so_far(self) -> dict[str, Any]:
        return _usage(self._prompt_tokens, self._completion_tokens)


def _usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
    """OpenAI's `usage`; as in vLLM, without details where no token was found in the prefix cache."""
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    details = {"prompt_tokens_details": {"cached_tokens": cached_tokens}} if cached_tokens else {}
    return usage | details
