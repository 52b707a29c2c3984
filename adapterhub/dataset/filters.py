"""Filters: which samples are good enough to train on, each with a count of what it dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from adapterhub._deadline import Deadline, DeadlineExceededError
from adapterhub._patterns import SafePattern
from adapterhub.dataset.records import Record, Sample
from adapterhub.dataset.stages import StageOptions, StageResult
from adapterhub.errors import ConfigError, DatasetError, InvalidRequestError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_PATTERN_SECONDS = 2.0
"""Processor time of one pattern on one text."""

_LANGUAGE_CHARACTERS = 1000
"""Of a conversation, those that its language is told from."""

CountTokens = Callable[[Record], int]
"""From a record to the number of its tokens; an `InvalidRequestError` if it cannot be written as a prompt."""
_Test = tuple[str, Callable[[Sample], bool]]
"""The reason to drop a sample, and whether it holds."""


def _check_pattern(pattern: str) -> str:
    SafePattern(pattern)
    return pattern


def _check_languages(codes: tuple[str, ...]) -> tuple[str, ...]:
    if codes:
        known = _language_identifier().labels
        if unknown := [code for code in codes if code not in known]:
            raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return codes


@cache
def _language_identifier() -> LanguageIdentifier:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ValueError("needs the package 'py3langid': pip install \"adapterhub[train]\"") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE)


Pattern = Annotated[str, AfterValidator(_check_pattern)]
Languages = Annotated[tuple[str, ...], AfterValidator(_check_languages)]


class FilterOptions(StageOptions):
    """What a sample must meet. A conversation is what users and the assistant say; system prompts do not count."""

    min_rating: float | None = None
    """Keep samples of at least this rating; samples without a rating are dropped."""
    rating_above: float | None = None
    """Keep samples of a rating above this; samples without a rating are dropped."""
    min_answer_characters: int | None = Field(None, ge=0)
    """Least number of characters of the assistant's messages, taken together."""
    max_answer_characters: int | None = Field(None, ge=0)
    """Greatest number of characters of the assistant's messages, taken together."""
    min_characters: int | None = Field(None, ge=0)
    """Least number of characters of the conversation."""
    max_characters: int | None = Field(None, ge=0)
    """Greatest number of characters of the conversation."""
    min_tokens: int | None = Field(None, ge=0)
    """Least number of tokens of the record as training sees it: with the chat template, system prompt and tools."""
    max_tokens: int | None = Field(None, ge=0)
    """Greatest number of tokens of the record as training sees it."""
    include: tuple[Pattern, ...] = ()
    """Regular expressions of which each must be found in the conversation."""
    exclude: tuple[Pattern, ...] = ()
    """Regular expressions of which none may be found in the conversation."""
    languages: Languages = ()
    """ISO 639-1 codes of the languages that the conversation may be in; one without letters passes."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for what in ("answer_characters", "characters", "tokens"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{what} is above max_{what}")
        return self

    @property
    def needs_tokens(self) -> bool:
        """Whether tokens have to be counted."""
        return self.min_tokens is not None or self.max_tokens is not None


def filter_samples(
    samples: Iterable[Sample], options: FilterOptions, count_tokens: CountTokens | None = None
) -> StageResult:
    """Drops the samples that do not meet the options; one that fails several counts for the first.

    Args:
        samples: The samples.
        options: What a sample must meet.
        count_tokens: Counts the tokens of a record; the samples get their numbers. Records that the chat template
            refuses are dropped.

    Raises:
        ConfigError: The options limit tokens, and there is no `count_tokens`.
        DatasetError: A pattern takes too long.
    """
    if options.needs_tokens and count_tokens is None:
        raise ConfigError(
            "min_tokens and max_tokens need a tokenizer.", hint="Name a base as the dataset's `tokenizer`."
        )
    result, tests = StageResult(), list(_tests(options))
    for sample in samples:
        reason = next((reason for reason, fails in tests if fails(sample)), None)
        if reason is None and count_tokens is not None:
            sample, reason = _counted(sample, options, count_tokens)
        if reason is None:
            result.kept.append(sample)
        else:
            result.dropped[reason] += 1
    return result


def _tests(options: FilterOptions) -> Iterator[_Test]:
    """The tests that are asked for, cheap ones first."""
    yield from _rating_tests(options)
    yield from _length_tests(
        "answer", options.min_answer_characters, options.max_answer_characters, lambda record: record.answers
    )
    yield from _length_tests(
        "conversation", options.min_characters, options.max_characters, lambda record: record.conversation
    )
    for pattern in options.include:
        yield "lacks an included pattern", _pattern_test(pattern, found=False)
    for pattern in options.exclude:
        yield "has an excluded pattern", _pattern_test(pattern, found=True)
    if options.languages:
        yield "language", _language_test(frozenset(options.languages))


def _rating_tests(options: FilterOptions) -> Iterator[_Test]:
    low, above = options.min_rating, options.rating_above
    if low is not None or above is not None:
        yield "no rating", lambda sample: sample.rating is None
    if low is not None:
        yield "rating too low", lambda sample: sample.rating is not None and not sample.rating >= low
    if above is not None:
        yield "rating too low", lambda sample: sample.rating is not None and not sample.rating > above


def _length_tests(
    what: str, low: int | None, high: int | None, text: Callable[[Record], str]
) -> Iterator[_Test]:
    if low is not None:
        yield f"{what} too short", lambda sample: len(text(sample.record)) < low
    if high is not None:
        yield f"{what} too long", lambda sample: len(text(sample.record)) > high


def _pattern_test(pattern: str, *, found: bool) -> Callable[[Sample], bool]:
    compiled = SafePattern(pattern)

    def fails(sample: Sample) -> bool:
        try:
            place = compiled.search(sample.record.conversation, Deadline(_PATTERN_SECONDS))
        except DeadlineExceededError:
            raise DatasetError(
                f"The pattern {pattern!r} takes too long on row {sample.record.line} of {sample.source!r}.",
                hint="Avoid repetitions inside repetitions, such as (a+)+.",
            ) from None
        return (place is not None) == found

    return fails


def _language_test(languages: frozenset[str]) -> Callable[[Sample], bool]:
    identifier = _language_identifier()

    def fails(sample: Sample) -> bool:
        text = sample.record.conversation[:_LANGUAGE_CHARACTERS]
        return any(map(str.isalpha, text)) and identifier.classify(text)[0] not in languages

    return fails


def _counted(sample: Sample, options: FilterOptions, count_tokens: CountTokens) -> tuple[Sample, str | None]:
    """The sample with its number of tokens, and the reason to drop it, if there is one."""
    try:
        tokens = count_tokens(sample.record)
    except InvalidRequestError:
        return sample, "refused by the chat template"
    if options.min_tokens is not None and tokens < options.min_tokens:
        return sample, "too few tokens"
    if options.max_tokens is not None and tokens > options.max_tokens:
        return sample, "too many tokens"
    return replace(sample, tokens=tokens), None
