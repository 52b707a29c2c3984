"""A few examples of every target; `make fuzz` tries them for half an hour."""

from __future__ import annotations

import pytest

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str) -> None:
    TARGETS[name].test(max_examples=15)()
