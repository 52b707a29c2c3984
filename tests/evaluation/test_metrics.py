"""Measures of answers."""

from pathlib import Path

import pytest

from adapterhub.errors import InvalidRequestError
from adapterhub.evaluation import ComparisonSettings, EvaluationPrompt
from adapterhub.evaluation.comparison import Answer, Answers, Sampling
from adapterhub.evaluation.metrics import Scorer, exact_match, load_scorer, measure, repetition

GREEDY = Sampling(0.0, 1.0)


def test_an_exact_match_is_the_whole_answer_but_for_white_space_around_it():
    assert [exact_match(answer, "low") for answer in ("low", " low\n", "Low", "low.", "")] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("token_ids", "share"),
    [([], 0), ([1, 1, 1], 0), ([1, 2, 3, 4, 5], 0), ([1, 1, 1, 1, 1, 1], 2 / 3), ([1, 2, 3, 4] * 2, 1 / 5)],
)
def test_repetition_is_the_share_of_four_tokens_that_occurred_before(token_ids: list[int], share: float):
    assert repetition(token_ids) == pytest.approx(share)


def measured(scorer: Scorer | None) -> dict[str, tuple[float, int]]:
    user = ({"role": "user", "content": "?"},)
    prompts = [EvaluationPrompt(user, "four"), EvaluationPrompt(user, "five"), EvaluationPrompt(user)]
    answers = (Answer("four", 2, False, 0.0), Answer("six", 3, True, 0.5), Answer("seven", 4, False, 0.1))
    found = measure(prompts, Answers("base", GREEDY, answers), ComparisonSettings(), scorer)
    return {one.name: (one.estimate.value, one.count) for one in found}


def test_each_measure_is_a_mean_over_the_prompts_that_it_applies_to():
    def length(answer: str, reference: str | None) -> float:
        return len(answer) - (len(reference) if reference else 0)

    assert measured(length) == {
        "exact_match": (0.5, 2),
        "length": (pytest.approx(4 / 3), 3),
        "tokens": (3.0, 3),
        "characters": (4.0, 3),
        "repetition": (pytest.approx(0.2), 3),
        "truncated": (pytest.approx(1 / 3), 3),
    }
    assert "length" not in measured(None)


def test_a_scorer_comes_from_a_file_or_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_scorer.py").write_text("def half(answer, reference):\n    return 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in (f"{tmp_path / 'my_scorer.py'}:half", "my_scorer:half"):
        assert load_scorer(name)("", None) == 0.5


@pytest.mark.parametrize(
    "name", ["half", "no_such_module:half", "math:none", "math:pi", ":half", "math:", "missing.py:f"]
)
def test_what_is_no_scorer_is_refused(name: str):
    with pytest.raises(InvalidRequestError):
        load_scorer(name)


@pytest.mark.parametrize("result", [float("nan"), float("inf"), "text", None])
def test_a_score_is_a_finite_number(result: object):
    with pytest.raises(InvalidRequestError):
        measured(lambda answer, reference: result)


def test_a_failing_scorer_is_named_and_shows_no_answer():
    def broken(answer: str, reference: str | None) -> float:
        raise ValueError(answer)

    with pytest.raises(InvalidRequestError, match="'broken' failed: ValueError") as raised:
        measured(broken)
    assert "four" not in str(raised.value)
