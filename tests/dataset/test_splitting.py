"""The split: sizes, seeds, and duplicates on one side."""

import pytest
from pydantic import ValidationError

from adapterhub.dataset import splitting
from adapterhub.dataset.near_duplicates import jaccard
from adapterhub.dataset.records import Sample
from adapterhub.dataset.splitting import SplitOptions, split
from adapterhub.errors import DatasetError
from tests.dataset.samples import sample, texts
from tests.dataset.test_near_duplicates import sums, text


def numbered(count: int) -> list[Sample]:
    return [sample("?", text(20, seed)) for seed in range(count)]


@pytest.mark.parametrize(
    ("size", "held_out"), [(0, 0), (1, 1), (30, 30), (0.25, 50), (0.001, 1), (0.999, 199)]
)
def test_sizes(size, held_out):
    train, validation = split(numbered(200), SplitOptions(val_size=size), seed=0)
    assert (len(train), len(validation)) == (200 - held_out, held_out)


def test_every_sample_is_on_one_side_and_the_order_is_drawn_with_the_seed():
    samples = sums()
    options = SplitOptions(val_size=0.1)
    train, validation = split(samples, options, seed=3)
    assert sorted(map(id, [*train, *validation])) == sorted(map(id, samples))
    assert split(samples, options, seed=3) == (train, validation)
    assert split(samples, options, seed=4) != (train, validation)
    assert train != [one for one in samples if one in train]


def test_repeated_records_are_on_one_side():
    """Each of 50 records ten times, near duplicates among them."""
    repeats = [
        text(40, seed).replace("word1", f"edited{copy}", 1) for seed in range(50) for copy in range(10)
    ]
    train, validation = split([sample("?", one) for one in repeats], SplitOptions(val_size=0.2), seed=0)
    assert len(validation) == 100
    sides = [[frozenset(one.split()) for one in texts(side)] for side in (train, validation)]
    assert max(jaccard(one, other) for one in sides[0] for other in sides[1]) < 0.5


def test_distinct_samples_are_split_alike_without_a_search(monkeypatch: pytest.MonkeyPatch):
    searched = split(sums(), SplitOptions(val_size=0.1), seed=3)
    monkeypatch.setattr(splitting, "duplicate_groups", None)
    assert split(sums(), SplitOptions(val_size=0.1), seed=3, are_distinct=True) == searched


@pytest.mark.parametrize("size", [200, 500])
def test_something_is_left_to_train_on(size):
    with pytest.raises(DatasetError, match=f"To hold out {size} of 200 records leaves none"):
        split(numbered(200), SplitOptions(val_size=size), seed=0)


def test_groups_that_are_too_large_to_be_held_out():
    with pytest.raises(DatasetError, match="No part of 10 records can be held out"):
        split([sample("?", "the same")] * 10, SplitOptions(val_size=0.2), seed=0)


@pytest.mark.parametrize("size", [-1, 1.5, 1.0, "many"])
def test_invalid_sizes(size):
    with pytest.raises(ValidationError, match="val_size"):
        SplitOptions(val_size=size)


def test_the_search_for_near_duplicates_shows_how_far_it_is():
    seen: list[tuple[str, int, int | None]] = []
    split(numbered(500), SplitOptions(), seed=0, progress=lambda *shown: seen.append(shown))
    done = [0, 200, 400, 500]
    stages = ("reading for near duplicates", "comparing near duplicates")
    assert seen == [(stage, count, 500) for stage in stages for count in done]
    seen.clear()
    split(
        numbered(500), SplitOptions(), seed=0, are_distinct=True, progress=lambda *shown: seen.append(shown)
    )
    assert seen == []  # there is nothing to wait for
