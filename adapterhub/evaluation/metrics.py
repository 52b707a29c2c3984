"""Measures of answers: exact match, a scorer of the user's, length, repetition."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from adapterhub._user_code import import_function
from adapterhub.errors import AdapterHubError, InvalidRequestError
from adapterhub.evaluation import bootstrap
from adapterhub.evaluation.comparison import Answers, ComparisonSettings, Metric
from adapterhub.evaluation.data import EvaluationPrompt

Scorer = Callable[[str, str | None], float]
"""From an answer and its reference, None where there is none, to a number; higher is better."""
_WINDOW = 4


def exact_match(answer: str, reference: str) -> float:
    """1 if an answer is its reference, up to white space at both ends; else 0."""
    return float(answer.strip() == reference.strip())


def repetition(token_ids: Sequence[int]) -> float:
    """The share of sequences of four tokens that occurred before: seq-rep-4 (Welleck et al., 2020).

    Args:
        token_ids: Of an answer; one of less than four tokens has none.
    """
    windows = [tuple(token_ids[i : i + _WINDOW]) for i in range(len(token_ids) - _WINDOW + 1)]
    return 1 - len(set(windows)) / len(windows) if windows else 0.0


def load_scorer(name: str) -> Scorer:
    """Imports a scorer.

    Args:
        name: `module:function` or `path/to/file.py:function`.

    Raises:
        InvalidRequestError: It cannot be imported, or is no function.
    """
    source, colon, attribute = name.rpartition(":")
    if not colon or not source or not attribute.isidentifier():
        raise InvalidRequestError(
            f"{name!r} names no scorer.", hint="Give it as module:function or path/to/file.py:function."
        )
    try:
        return import_function(name)
    except Exception as error:  # the user's module raises whatever it does
        raise InvalidRequestError(
            f"The scorer {name!r} could not be imported: {type(error).__name__}: {error!s:.200}."
        ) from error


def measure(
    prompts: Sequence[EvaluationPrompt], answers: Answers, settings: ComparisonSettings, scorer: Scorer | None
) -> Iterator[Metric]:
    """The measures of one contender's answers at one setting.

    Args:
        prompts: In the order of the answers.
        answers: The answers.
        settings: Of the comparison.
        scorer: The user's; None for none.

    Raises:
        InvalidRequestError: The scorer fails, or returns no finite number.
    """
    pairs = [(answer, prompt.reference) for prompt, answer in zip(prompts, answers.answers, strict=True)]
    values: dict[str, list[float]] = {
        "exact_match": [exact_match(one.text, reference) for one, reference in pairs if reference is not None]
    }
    if scorer:
        values[scorer_name(scorer)] = [_score(scorer, one.text, reference) for one, reference in pairs]
    values["tokens"] = [one.tokens for one, _ in pairs]
    values["characters"] = [len(one.text) for one, _ in pairs]
    values["repetition"] = [one.repetition for one, _ in pairs]
    values["truncated"] = [float(one.truncated) for one, _ in pairs]
    for name, each in values.items():
        if each:
            estimate = bootstrap.mean(each, resamples=settings.resamples, seed=settings.seed)
            yield Metric(answers.contender, answers.sampling, name, estimate, len(each))


def scorer_name(scorer: Scorer) -> str:
    """The name of a scorer in reports."""
    return getattr(scorer, "__name__", type(scorer).__name__)


def _score(scorer: Scorer, answer: str, reference: str | None) -> float:
    try:
        score = float(scorer(answer, reference))
    except AdapterHubError:
        raise
    except Exception as error:  # the message may have an answer's text
        raise InvalidRequestError(
            f"The scorer {scorer_name(scorer)!r} failed: {type(error).__name__}.",
            hint="It is called with an answer and its reference (None without one), and returns a number.",
        ) from error
    if not math.isfinite(score):
        raise InvalidRequestError(f"The scorer {scorer_name(scorer)!r} returned {score}.")
    return score
