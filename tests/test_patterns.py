"""Untrusted patterns: what is refused before it costs time or memory, and what people write is not."""

import tracemalloc
from collections.abc import Iterator

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapterhub._deadline import Deadline
from adapterhub._patterns import SafePattern, all_matches


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}", "2024-01-02T03:04:05.678"),
        (r"[\w.-]{1,64}@[\w-]{1,255}\.[a-z]{2,24}", "anna@example.com"),
        (r"\d{1,3}(\.\d{1,3}){3}", "127.0.0.1"),
        (r".{0,2000}x", "aax"),
        (r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", "123e4567-e89b-12d3-a456-426614174000"),
    ],
)
def test_common_patterns_are_accepted(pattern: str, text: str):
    assert SafePattern(pattern).search(text, Deadline(1), full=True) == 0


def test_case_can_be_ignored():
    assert SafePattern("ß", ignore_case=True).search("xẞ", Deadline(1)) == 1
    assert SafePattern("a").search("A", Deadline(1)) is None


class Interrupted:
    """A pattern whose first search ends early: `regex` counts the processor time of all threads of the process."""

    def __init__(self) -> None:
        self._pattern = regex.compile("[a-z]+")
        self._is_new = True

    def finditer(self, text: str, position: int = 0, timeout: float = 0) -> Iterator[regex.Match[str]]:
        for match in self._pattern.finditer(text, position):
            yield match
            if self._is_new:
                self._is_new = False
                raise TimeoutError


def test_the_work_of_other_threads_does_not_end_a_search():
    matches = all_matches(Interrupted(), "ab cd ef", Deadline(1))  # type: ignore[arg-type]
    assert [match[0] for match in matches] == ["ab", "cd", "ef"]


COUNTS = st.sampled_from(["{20}", "{300}", "{2,90}", "{,40}", "{90,}", "{e<=1}", "?", "*", "{", "}"])
GROUPS = st.sampled_from(["(?:", "(", ")", "[)]", "[(]", "(?#", "(?x)", "\\(", "\\)", "[", "]", "^"])
PARTS = COUNTS | GROUPS | st.sampled_from(["a", ".", "|", "[a-z]", " ", "#", "\n", "a?a?a?a?a?a?"])


@settings(max_examples=400, deadline=None)
@given(st.lists(PARTS, min_size=1, max_size=30).map("".join))
@example("(?:(?:a?a?a?a?a?a?){300}){300}")
@example("(?x)(?:(?:ab|c) # a comment\n{90})#\n{300}")
def test_no_pattern_takes_much_memory_to_compile(pattern: str):
    tracemalloc.start()
    try:
        SafePattern(pattern)
    except ValueError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20_000_000
