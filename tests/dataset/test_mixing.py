"""Caps and weights of sources."""

from collections import Counter

import pytest

from adapterhub.dataset.mixing import cap, weigh
from tests.dataset.samples import sample, texts

SAMPLES = [sample("?", f"{source}{number}", source=source) for number in range(10) for source in "ab"]


def test_a_cap_draws_from_the_whole_source_and_keeps_the_order():
    result = cap(SAMPLES, {"a": 4, "b": None}, seed=1)
    a, b = ([text for text in texts(result.kept) if text[0] == source] for source in "ab")
    assert (len(a), len(b)) == (4, 10)
    assert a == sorted(a) != [f"a{number}" for number in range(4)]
    assert result.dropped == {"over the source's maximum": 6}
    assert cap(SAMPLES, {"a": 4}, seed=1).kept == result.kept
    assert cap(SAMPLES, {"a": 4}, seed=2).kept != result.kept


def test_a_cap_that_is_not_reached_changes_nothing():
    result = cap(SAMPLES, {"a": 10, "c": 1}, seed=1)
    assert (result.kept, result.dropped) == (SAMPLES, {})


@pytest.mark.parametrize(
    ("weight", "times"), [(1.0, {1: 10}), (3.0, {3: 10}), (0.3, {1: 3}), (2.5, {2: 5, 3: 5}), (0.01, {})]
)
def test_a_weight_is_how_many_times_a_source_counts(weight, times):
    result = weigh(SAMPLES, {"a": weight}, seed=0)
    found = Counter(texts(result.kept))
    assert Counter(count for text, count in found.items() if text[0] == "a") == times
    assert all(found[f"b{number}"] == 1 for number in range(10))
    assert result.dropped["thinned out by weight"] == 10 - sum(times.values())
    assert result.changed["copies added by weight"] == sum((count - 1) * n for count, n in times.items())


def test_the_order_is_drawn_with_the_seed():
    one, other = (weigh(SAMPLES, {}, seed=seed).kept for seed in (0, 1))
    assert one == weigh(SAMPLES, {}, seed=0).kept
    assert one != other
    assert sorted(texts(one)) == sorted(texts(other)) == sorted(texts(SAMPLES))
