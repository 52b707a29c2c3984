"""What every rule is: a description that can be sent as JSON, and a check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from adapterhub.agent_tools.content_rules.clock import Clock
from adapterhub.agent_tools.content_rules.report import Fault
from adapterhub.agent_tools.text_formatting.fences import fenced


class BaseRule(BaseModel, ABC):
    """One thing that a text must be."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @abstractmethod
    def check(self, text: str, clock: Clock) -> Fault | None:
        """What is wrong with the text, if anything.

        Raises:
            OutOfTimeError: That could not be found out in time.
        """


def prose_lines(text: str, clock: Clock) -> Iterator[tuple[int, str]]:
    """Where each line outside fenced code begins, and the line."""
    at = 0
    for line, is_code in clock.watch(fenced(text.split("\n"))):
        if not is_code:
            yield at, line
        at += len(line) + 1


def shown(value: object, longest: int = 60) -> str:
    """A value in a reason: short, and with nothing that a terminal would act on."""
    text = ascii(value) if not str(value).isprintable() else f"{value}"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
