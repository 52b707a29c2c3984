"""A few examples of every target; `make fuzz` tries them for half an hour."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str) -> None:
    accepted: list[Any] = []
    TARGETS[name].test(accepted, max_examples=25)()
    assert accepted, "no example gets past the first check"
