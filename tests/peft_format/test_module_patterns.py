"""Patterns of module names match as in PEFT, however many there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from adapterhub.peft_format.config import LoraSettings
from adapterhub.peft_format.module_patterns import PatternTable
from tests.timing import least_seconds

MODULE = st.lists(st.text("abx1_-", min_size=1, max_size=2), min_size=1, max_size=4).map(".".join)
PATTERN = st.text("ab1_.^$-", min_size=1, max_size=6) | st.sampled_from(
    [r"a\.b", r"^a\.b", "a.b$", "(a|b)", "a+", "[ab]", r"\.a", "^", "$", "$a", "a^", ".*", "a$$", "^^a"]
)


def peft_value(patterns: dict[str, int], module: str) -> int:
    """The value that PEFT takes: of the first pattern that matches."""
    return patterns.get(get_pattern_key(patterns.keys(), module), -1)


@given(patterns=st.lists(PATTERN, max_size=6, unique=True), modules=st.lists(MODULE, min_size=1, max_size=4))
def test_the_first_pattern_counts_as_in_peft(patterns: list[str], modules: list[str]):
    numbered = {pattern: index for index, pattern in enumerate(patterns)}
    table = PatternTable(numbered)
    for module in modules:
        assert table.get(module, -1) == peft_value(numbered, module), (patterns, module)


@pytest.mark.parametrize(
    ("pattern", "module", "matches"),
    [
        ("q_proj", "model.layers.0.q_proj", True),
        ("q_proj", "model.layers.0.eq_proj", False),
        ("layers.1.q_proj", "model.layers.1.q_proj", True),
        ("layers.1.q_proj", "model.layers.11.q_proj", False),
        ("q.proj", "layers.0.q_proj", True),  # a dot stands for any character
        (r"q\.proj", "layers.0.q_proj", False),
        ("^q_proj", "layers.q_proj", False),
        ("^layers.q_proj$", "layers.q_proj", True),
    ],
)
def test_a_plain_name_matches_the_end_of_a_modules_name(pattern: str, module: str, matches: bool):
    assert (PatternTable({pattern: 1}).get(module, 0) == 1) is matches
    assert (peft_value({pattern: 1}, module) == 1) is matches


def experts(count: int) -> list[str]:
    return [
        f"model.layers.{n // 999}.mlp.experts.{n % 333}.{('up', 'gate', 'down')[n // 333 % 3]}_proj"
        for n in range(count)
    ]


def test_sixty_thousand_ranks_take_no_longer_than_reading_them():
    """One for each expert of each layer; the values are right, the first and the last."""
    names = experts(20_000)
    ranks = {name.removeprefix("model."): 1 + index % 60 for index, name in enumerate(names)}
    padding = {f"layers.{n}.other_proj": 1 for n in range(40_000)}

    def look_up() -> list[int]:
        settings = LoraSettings(r=4, lora_alpha=8, rank_pattern={**ranks, **padding})
        return [settings.rank(name) for name in names]

    found, seconds = least_seconds(look_up, enough=4)
    assert found == list(ranks.values())
    assert seconds < 4  # one after the other they took minutes


def test_patterns_of_too_many_shapes_are_refused():
    """They could only be tried one after the other."""
    letters = [f"{n:011b}".replace("0", "a").replace("1", ".") for n in range(2048)]
    with pytest.raises(ValueError, match="more than 1024 different places"):
        LoraSettings(r=4, lora_alpha=8, rank_pattern=dict.fromkeys(letters, 1))
