"""Fields that bodies of chat and text completions share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.server.errors import FieldError
from adapterhub.server.protocol.fields import Body, ListOf, at_most


class StreamOptions(BaseModel):
    """What a stream says beside the answer."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    include_usage: bool | None = None
    """End with a chunk that has no choices and the usage."""
    continuous_usage_stats: bool | None = None
    """Every chunk has the usage so far; vLLM's."""


class GenerationBody(Body):
    """A request for an answer. What is not sent comes from the adapter's card, then from the base."""

    model: str = Field(min_length=1, max_length=2000)
    """An adapter's `name`, `name@version` or `name@alias`; a blend `a:0.7+b:0.3`; `auto`; `base` or the base's name."""
    stream: bool | None = None
    """Send the answer as it comes, as server-sent events."""
    stream_options: StreamOptions | None = None
    """What a stream says beside the answer."""
    stream_interval: int | None = Field(None, ge=1)
    """Least number of tokens of a stream's chunk, if that is more than the server's; vLLM's."""
    max_tokens: int | None = None
    """Maximum number of tokens of the answer; 256 if not sent, or what the context leaves."""
    temperature: float | None = None
    """0, the default, always takes the most probable token."""
    top_p: float | None = None
    """Keep the most probable tokens that together reach this probability."""
    top_k: int | None = None
    """Keep only this many most probable tokens."""
    min_p: float | None = None
    """Keep tokens whose probability is at least this share of the most probable one's."""
    repetition_penalty: float | None = None
    """Above 1 makes tokens that prompt and answer contain less probable."""
    frequency_penalty: float | None = None
    """Subtracted from a token's logit for each time that the answer contains it; -2 to 2."""
    presence_penalty: float | None = None
    """Subtracted from the logit of each token that the answer contains; -2 to 2."""
    logit_bias: Annotated[dict[int, float], at_most(1024)] | None = Field(None, max_length=1024)
    """Token id -> what is added to its logit, -100 to 100."""
    bad_words: ListOf[str] | None = None
    """Texts that are never generated, but where an output format allows nothing else."""
    stop: str | ListOf[str] | None = None
    """Texts that end the answer and are not part of it."""
    stop_token_ids: ListOf[int] | None = None
    """Tokens that end the answer."""
    min_tokens: int | None = None
    """The answer does not end before it has this many tokens."""
    ignore_eos: bool | None = None
    """Continue past the base's end token."""
    seed: int | None = None
    """Makes sampling repeatable; -1 is as if not sent, as in vLLM."""
    n: int | None = None
    """Number of answers."""
    priority: int | None = None
    """Waiting requests with a higher one start first; vLLM's order is the opposite."""

    user: str | None = None
    """Whose requests one version of an alias answers, where several share them. It is not kept."""
    safety_identifier: str | None = None
    """`user` under its newer name, which wins."""

    @property
    def streams(self) -> bool:
        """Whether the answer is streamed."""
        return bool(self.stream)

    def options(self) -> dict[str, Any]:
        """The options of a call of the hub that were sent.

        Raises:
            FieldError: A field is not valid.
        """
        return self.sampling_options()

    def tokens_per_chunk(self, least: int) -> int:
        """Least number of tokens of a stream's chunk.

        Args:
            least: What the server is set to.
        """
        return max(self.stream_interval or 1, least)

    def sampling_options(self) -> dict[str, Any]:
        """The options of a call of the hub that were sent.

        Raises:
            FieldError: Log-probabilities of the prompt are to be streamed.
        """
        names = [name for name in (*SamplingParams.model_fields, "priority", "user") if name != "logprobs"]
        sent = {name: getattr(self, name, None) for name in names}
        sent["user"] = self.safety_identifier or self.user
        if self.seed == -1:
            sent["seed"] = None
        if self.streams and sent["prompt_logprobs"] is not None:
            raise FieldError("prompt_logprobs are not streamed.", "prompt_logprobs", hint="Leave stream out.")
        return {name: value for name, value in sent.items() if value is not None}
