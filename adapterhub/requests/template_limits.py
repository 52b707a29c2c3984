"""The limits of rendering an untrusted template.

What can make a large value out of small ones, or compares each part of one text with all of another, is checked before
it runs: once it does, nothing can stop it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

from adapterhub._deadline import Deadline

MAX_RENDERED_CHARACTERS = 64_000_000
MAX_RENDER_SECONDS = 2.0
"""Processor time of one rendering; published templates take milliseconds."""
_MAX_VALUE_CHARACTERS, _MAX_TEXT_CHARACTERS = 4_000_000, 16_000_000
_PART_SIZE = 32
"""What a part of a list or a mapping counts besides its text, for the time that it takes."""
_MAX_MADE = 256_000_000
"""Bytes of all values that one rendering makes: it may keep them all."""
_MAX_COMPARISONS = 100_000_000
_MAX_BITS = 4096
_MAX_RANGE_NUMBER = 10**9
"""Larger numbers may all have one hash, which makes a mapping of them take quadratic time."""
_MAX_NUMBER = _MAX_WIDTH = 10_000
_CLOCK_EVERY = 16
_FORMAT_WIDTH = re.compile(r"\d{5}|%[^a-zA-Z%]*\*|\{[^{}]*\{")


class RenderingLimitError(TemplateError):
    """A rendering takes too long, or makes too large a value."""


class TextTooLongError(RenderingLimitError):
    """The rendered text is longer than it may be."""


class Rendering:
    """The limits of one rendering, and what it has used."""

    def __init__(self, max_characters: int) -> None:
        self._max_characters = max_characters
        self._max_size = max(_MAX_VALUE_CHARACTERS, min(max_characters, _MAX_TEXT_CHARACTERS))
        self._deadline = Deadline(MAX_RENDER_SECONDS)
        self._steps = self._printed = self._looped = self._made = 0

    def step(self) -> None:
        self._steps += 1
        if self._steps % _CLOCK_EVERY == 0:
            self.check_time()

    def check_time(self) -> None:
        if self._deadline.remaining <= 0:
            raise RenderingLimitError(f"it takes more than {MAX_RENDER_SECONDS:g} s")

    def print(self, characters: int) -> None:
        self.step()
        self._printed += characters
        if self._printed > self._max_characters:
            raise TextTooLongError(f"its text has more than {self._max_characters:,} characters")

    def loop(self, characters: int) -> None:
        """Counts what a loop's body prints, which may be in a macro."""
        self.step()
        self._looped += characters
        check_printed(self._looped)

    def check(self, size: int) -> None:
        if size > self._max_size:
            raise RenderingLimitError(f"it makes a value of more than {self._max_size:,} characters")

    def weigh(self, value: Any, indent: int = 0) -> int:
        """The size of a value written out, in which one object may occur many times.

        Raises:
            RenderingLimitError: It is too large.
        """
        if isinstance(value, str):
            self.check(len(value))
            self._count_made(sys.getsizeof(value))
            return len(value)
        size, waiting = 0, [(value, 1)]
        while waiting:
            one, depth = waiting.pop()
            parts = _parts(one)
            # Parts count before they are looked at, so that the list of them is no longer than the limit.
            size += _own_size(one) + depth * indent + len(parts) * _PART_SIZE
            self.check(size)
            waiting += [(part, depth + 1) for part in parts]
        self._count_made(size)
        if size > _MAX_VALUE_CHARACTERS // 100:
            self.check_time()
        return size

    def check_list(self, value: Any) -> None:
        """Checks a list or a text that holds parts of another, without looking at the parts."""
        if isinstance(value, list | tuple):
            self.check(len(value) * _PART_SIZE)
        elif isinstance(value, str):
            self.weigh(value)

    def _count_made(self, size: int) -> None:
        self._made += size
        if self._made > _MAX_MADE:
            raise RenderingLimitError(f"it makes values of more than {_MAX_MADE:,} bytes")


def _own_size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, int):
        check_bits(value.bit_length())
    return 8


def check_printed(size: int) -> None:
    if size > MAX_RENDERED_CHARACTERS:
        raise RenderingLimitError(f"its text has more than {MAX_RENDERED_CHARACTERS:,} characters")


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, Namespace):
        value = getattr(value, "_Namespace__attrs", {})
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list | tuple) else ()


def check_product(rendering: Rendering, left: Any, right: Any) -> None:
    for count, value in ((left, right), (right, left)):
        if isinstance(count, int) and isinstance(value, str | list | tuple):
            rendering.check(max(count, 0) * max(rendering.weigh(value), 1))
    if isinstance(left, int) and isinstance(right, int):
        check_bits(left.bit_length() + right.bit_length())


def check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        check_bits(left.bit_length() * right)


def check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise RenderingLimitError(f"it computes a number of more than {_MAX_BITS:,} bits")


def check_range(numbers: Iterable[Any]) -> None:
    if any(isinstance(one, int) and abs(one) > _MAX_RANGE_NUMBER for one in numbers):
        raise SecurityError(f"range is given a number above {_MAX_RANGE_NUMBER:,}")


def check_compared(text: str, *others: Any) -> None:
    """For methods that compare every place of a text with all of another, such as `rfind` and `strip`."""
    if any(len(text) * len(other) > _MAX_COMPARISONS for other in others if isinstance(other, str)):
        raise RenderingLimitError(f"it compares texts more than {_MAX_COMPARISONS:,} times")


def check_format(text: str) -> None:
    if _FORMAT_WIDTH.search(text):
        raise SecurityError("a format has too wide or nested fields")


def check_formatted(rendering: Rendering, text: str, *values: Any) -> None:
    """Each field may print all values."""
    fields = text.count("%") + text.count("{")
    rendering.check(len(text) + fields * (_MAX_WIDTH + sum(map(rendering.weigh, values))))


def check_numbers(arguments: Iterable[Any]) -> None:
    if any(isinstance(one, int) and abs(one) > _MAX_NUMBER for one in arguments):
        raise SecurityError(f"a filter is given a number above {_MAX_NUMBER:,}")


def check_replaced(rendering: Rendering, text: str, old: str, new: str) -> None:
    rendering.check(len(text) + text.count(old) * len(new))


def joined_items(rendering: Rendering, separator: str, items: Iterable[Any]) -> list[Any]:
    listed = list(items)
    rendering.check(rendering.weigh(listed) + len(separator) * len(listed))
    return listed


def checked_arguments(
    rendering: Rendering, text: str, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The arguments of a method of a text, which does not make too large a text."""
    numbers = [one for one in (*arguments, *named.values()) if isinstance(one, int)]
    match name:
        case "translate" | "encode" | "maketrans":
            raise SecurityError(f"{name} is not available to chat templates")
        case "expandtabs":
            rendering.check(len(text) + text.count("\t") * max([8, *numbers]))
        case "replace" if len(arguments) > 1:
            check_replaced(rendering, text, str(arguments[0]), str(arguments[1]))
        case "join" if arguments:
            return (joined_items(rendering, text, arguments[0]), *arguments[1:])
        case "rfind" | "rindex" | "rsplit" | "rpartition" | "strip" | "lstrip" | "rstrip":
            check_compared(text, *arguments, *named.values())
        case "ljust" | "rjust" | "center" | "zfill":
            rendering.check(max([0, *numbers]))
    return arguments
