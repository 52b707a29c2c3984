"""The result of a request: the answer, its usage, and the adapter that answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from adapterhub.engine.interface import Completion, FinishReason, PromptLogprobs, Timings
from adapterhub.engine.output_format import OutputFormat
from adapterhub.routing.decision import RouteDecision


@dataclass(frozen=True)
class Usage:
    """Tokens and time of an answer.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens generated, summed over all `n` answers.
        seconds: Wall time in the engine, from the prompt's first token to the answer's last.
        cached_tokens: Those of the prompt that the first answer found in a prefix cache.
    """

    prompt_tokens: int
    completion_tokens: int
    seconds: float
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens for each second of wall time."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Generation:
    """The answer to one request.

    Attributes:
        text: The answer; with `n` above 1, the first of them.
        adapter: The name of the adapter that answered; None means the bare base. For a blend its reference, with
            versions: `json@1:0.7+support@2:0.3`.
        version: The adapter's version; None for a blend.
        route: The router's decision, if the request had `adapter="auto"`.
        usage: Tokens and time.
        finish_reason: `"stop"` (end token or stop string) or `"length"`.
        completions: All `n` answers, with token ids and log-probabilities.
        output_format: The output format of the request.
        prompt_token_ids: Token ids of the prompt.
    """

    text: str
    adapter: str | None
    version: int | None
    route: RouteDecision | None
    usage: Usage
    finish_reason: FinishReason
    completions: tuple[Completion, ...]
    output_format: OutputFormat | None = None
    prompt_token_ids: Sequence[int] = field(default=(), compare=False, repr=False)

    @property
    def timings(self) -> Timings | None:
        """How long the parts of the first completion took; None if the engine takes no times."""
        return self.completions[0].timings

    @property
    def prompt_logprobs(self) -> PromptLogprobs | None:
        """Log-probabilities of the prompt's tokens, None for the first of them; None if they were not requested."""
        return self.completions[0].prompt_logprobs

    @property
    def parsed(self) -> Any:
        """The value of structured output: of the schema's type, or JSON's; the text where no schema was given.

        Raises:
            GenerationError: The text passes the grammar but not the type's own checks; see `OutputFormat.parse`.
        """
        return self.output_format.parse(self.text) if self.output_format else self.text
