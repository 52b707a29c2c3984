"""What the stages of dataset composition share: how their options are checked, and what they return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from adapterhub.dataset.records import Sample

Progress = Callable[[str, int, int | None], None]
"""Called with the stage, how much is done, and how much there is, if that is known."""
_Item = TypeVar("_Item")
_ITEMS_BETWEEN_REPORTS = 200


class StageOptions(BaseModel):
    """Base of the options of a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass
class StageResult:
    """What a stage made of its samples.

    Every stage is a function of an iterable of samples, which it iterates over once, and of its options.

    Attributes:
        kept: The samples that go on, in their order.
        dropped: Number of samples that do not, by reason.
        changed: Number of samples that were changed, by what was done.
    """

    kept: list[Sample] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)


def shown(items: Sequence[_Item], stage: str, show: Progress | None) -> Iterator[_Item]:
    """The items one by one, while it is shown how many of them the stage has taken."""
    for done, item in enumerate(items):
        if show and done % _ITEMS_BETWEEN_REPORTS == 0:
            show(stage, done, len(items))
        yield item
    if show:
        show(stage, len(items), len(items))
