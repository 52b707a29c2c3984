"""Signatures, for tests that compare names of arguments."""

import inspect
from collections.abc import Callable
from typing import Any


def parameters(function: Callable[..., Any]) -> list[str]:
    """The positional parameters after `self`."""
    found = inspect.signature(function).parameters.values()
    return [one.name for one in found if one.kind is one.POSITIONAL_OR_KEYWORD and one.name != "self"]
