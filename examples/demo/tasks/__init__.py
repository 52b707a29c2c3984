"""The four tasks: each makes requests with their right answers, and scores an answer by program.

Every module has `generate(split, n, seed) -> list[Record]` and `score(record, answer) -> bool`. The two splits share no
phrase and no invented word: what is measured on `heldout` was not in training.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

NAMES = ("json", "code", "support", "tools")


class Record(TypedDict):
    """One request with its right answer: a row of the training data or of the held-out set.

    Attributes:
        messages: The conversation; the last message is the assistant's right answer.
        tools: The tools offered, as OpenAI-style JSON schemas.
        check: What `score` needs besides the right answer.
    """

    messages: list[dict[str, Any]]
    tools: NotRequired[list[dict[str, Any]]]
    check: dict[str, Any]
