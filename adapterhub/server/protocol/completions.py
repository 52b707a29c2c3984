"""The body of Completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from adapterhub.server.protocol.fields import ListOf
from adapterhub.server.protocol.output_formats import FormattedBody

MAX_PROMPTS = 2048
"""OpenAI's bound of what one request may ask at once."""

_TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_TokenIds = Annotated[ListOf[_TokenId], Field(min_length=1)]
_Text = Annotated[str, Field(min_length=1)]
Prompt = str | list[int]


class CompletionRequest(FormattedBody):
    """The body of `POST /v1/completions`: a prompt as it is, without chat template or system prompt."""

    prompt: (
        _Text
        | _TokenIds
        | Annotated[ListOf[_Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[ListOf[_TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    echo: bool | None = None
    """Begin the answer with the prompt, and `logprobs` with those of its tokens; `max_tokens` may be 0 then."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Return each token's log-probability and those of this many most probable tokens."""
    prompt_logprobs: int | None = Field(None, ge=0, le=20)
    """The same of the prompt's tokens, in a list of their own; vLLM's."""

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts, one or several."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt

    @property
    def only_echoes(self) -> bool:
        """Whether the answer is the prompt alone."""
        return bool(self.echo) and self.max_tokens == 0

    def options(self) -> dict[str, Any]:
        """The options of a call of the hub that were sent.

        Raises:
            FieldError: Log-probabilities of the prompt are to be streamed in a list of their own.
        """
        options = self.sampling_options()
        if self.logprobs is not None:
            options["logprobs"] = self.logprobs
            if self.echo:
                options["prompt_logprobs"] = max(self.logprobs, self.prompt_logprobs or 0)
        if self.only_echoes:
            options["max_tokens"] = 1  # as in vLLM: it is left out of the answer
        return options
