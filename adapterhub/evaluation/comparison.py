"""The settings and the result of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapterhub.errors import InvalidRequestError, describe_validation
from adapterhub.evaluation.bootstrap import Estimate
from adapterhub.evaluation.data import EvaluationFile, EvaluationPrompt

BASE = "base"
"""How the bare base is called in a comparison."""
GREEDY_BELOW = 1e-5  # as in the engine


class ComparisonSettings(BaseModel):
    """How contenders are compared; all get the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    temperatures: Annotated[tuple[Annotated[float, Field(ge=0, le=100)], ...], Field(min_length=1)] = (0.0,)
    """Every prompt is answered at each; 0 is greedy."""
    top_ps: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (1.0,)
    """And at each of these with each temperature; a greedy answer does not depend on it."""
    max_tokens: int | None = Field(None, ge=1)
    """Maximum number of tokens of an answer; if not given, 256 or what the context leaves, whichever is less."""
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    """Above 1 makes tokens that prompt and answer contain less probable; if not given, the adapter's card's or the
    base's default."""
    top_k: int | None = Field(None, ge=-1)
    """Keep only this many most probable tokens; 0 keeps all; if not given, as for the repetition penalty."""
    seed: int = Field(0, ge=0)
    """Of sampling and of the bootstrap."""
    max_length: int = Field(1024, ge=2)
    """Tokens; longer held-out records are cut at the end."""
    resamples: int = Field(1000, ge=100)
    """Draws of the bootstrap, for the intervals."""

    @classmethod
    def of(cls, **settings: Any) -> ComparisonSettings:
        """Checks settings.

        Raises:
            InvalidRequestError: A setting is unknown or not valid; all of them are named.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            raise InvalidRequestError(
                f"The settings are not valid: {describe_validation(error, limit=None)}.",
                hint=f"Known settings: {', '.join(cls.model_fields)}.",
            ) from error

    @property
    def sweep(self) -> list[Sampling]:
        """The combinations of temperature and top-p, each once."""
        every = (
            Sampling(temperature, top_p if temperature >= GREEDY_BELOW else 1.0)
            for temperature in self.temperatures
            for top_p in self.top_ps
        )
        return list(dict.fromkeys(every))


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Attributes:
        temperature: 0 is greedy.
        top_p: The share of probability that is kept.
    """

    temperature: float
    top_p: float

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < GREEDY_BELOW

    def __str__(self) -> str:
        if self.is_greedy:
            return "greedy"
        return f"temperature {self.temperature:g}, top-p {self.top_p:g}"


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of one contender on the assistant's tokens of the held-out records.

    Attributes:
        estimate: exp(sum of losses / number of tokens), with its interval.
        losses: The sum of each example's losses, nats.
        tokens: The number of tokens that they are of.
    """

    estimate: Estimate
    losses: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """One answer of one contender.

    Attributes:
        text: The answer.
        tokens: The number of its tokens, the end token included.
        truncated: Whether it was cut off at `max_tokens`.
        repetition: The share of its sequences of four tokens that occurred before in it.
    """

    text: str
    tokens: int
    truncated: bool
    repetition: float


@dataclass(frozen=True)
class Answers:
    """The answers of one contender at one setting of the sweep, in the order of the prompts."""

    contender: str
    sampling: Sampling
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Metric:
    """One measure of one contender's answers.

    Attributes:
        contender: `"base"`, or an adapter's reference.
        sampling: The setting of the sweep.
        name: `exact_match`, the scorer's name, `tokens`, `characters`, `repetition` or `truncated`.
        estimate: The mean over the prompts, with its interval.
        count: The number of prompts that it is the mean of.
    """

    contender: str
    sampling: Sampling
    name: str
    estimate: Estimate
    count: int


@dataclass(frozen=True)
class Comparison:
    """An adapter beside what it is compared with.

    Attributes:
        adapter: The reference of the adapter, with its version.
        against: What it is compared with: `"base"`, or references.
        base: The name of the base.
        environment: How the base was stored and computed, and the versions of the libraries.
        files: The files of data and prompts.
        settings: Those of the comparison.
        records: Held-out records that were scored; of one that the chat template splits, each part counts.
        truncated: How many of them were cut to `max_length`.
        dropped: How many had no answer within it.
        perplexities: By contender; empty without held-out data.
        ratios: The adapter's perplexity divided by that of each other contender, paired; below 1 is better.
        prompts: The prompts that were answered.
        answers: For each contender and setting.
        metrics: The measures of these answers.
        warnings: What makes a figure doubtful.
    """

    adapter: str
    against: tuple[str, ...]
    base: str
    environment: Mapping[str, str | None]
    files: tuple[EvaluationFile, ...]
    settings: ComparisonSettings
    records: int
    truncated: int
    dropped: int
    perplexities: Mapping[str, Perplexity]
    ratios: Mapping[str, Estimate]
    prompts: tuple[EvaluationPrompt, ...]
    answers: tuple[Answers, ...]
    metrics: tuple[Metric, ...]
    warnings: tuple[str, ...]

    @property
    def contenders(self) -> tuple[str, ...]:
        """What was compared, the adapter last."""
        return (*self.against, self.adapter)

    def metric(self, contender: str, name: str, sampling: Sampling | None = None) -> Metric | None:
        """One measure; at the first setting of the sweep if none is given, and None if there is no such measure."""
        wanted = (contender, name, sampling or self.settings.sweep[0])
        return next((one for one in self.metrics if (one.contender, one.name, one.sampling) == wanted), None)
