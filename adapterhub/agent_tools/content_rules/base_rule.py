"""The base class of rules: a description that can be sent as JSON, and a check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from adapterhub._deadline import Deadline
from adapterhub.agent_tools.content_rules.report import Violation
from adapterhub.agent_tools.text_formatting.fences import mark_fenced


class BaseRule(BaseModel, ABC):
    """One condition on a text."""

    # The name of a rule says what it is; its docstring would be part of every prompt.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra=lambda schema: schema.pop("description", None),
    )

    @abstractmethod
    def check(self, text: str, deadline: Deadline) -> Violation | None:
        """Returns the first violation; None if the text passes.

        Raises:
            DeadlineExceededError: The check did not end in time.
        """


def unfenced_lines(text: str, deadline: Deadline) -> Iterator[tuple[int, str]]:
    """Yields each line outside fenced code, with its offset in the text; a byte order mark is not part of a line."""
    offset = int(text.startswith("\ufeff"))
    for line, is_code in deadline.limit(mark_fenced(text[offset:].split("\n"))):
        if not is_code:
            yield offset, line
        offset += len(line) + 1


def abbreviate(value: object, max_length: int = 60) -> str:
    """A value as part of a reason: short, and without characters that a terminal would act on."""
    text = ascii(value) if not str(value).isprintable() else f"{value}"
    return text if len(text) <= max_length else f"{text[: max_length - 3]}..."
