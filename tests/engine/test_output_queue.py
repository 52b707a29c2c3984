"""The output queue: nothing follows the last output, and a consumer that sees `finished` finds the last output."""

from __future__ import annotations

import pytest

from adapterhub.engine.interface import FinishReason, TokenOutput
from adapterhub.engine.scheduling.output_queue import OutputQueue
from adapterhub.errors import GenerationError


def output(finish_reason: FinishReason | None = None) -> TokenOutput:
    return TokenOutput("a", 5, None, finish_reason)


@pytest.mark.parametrize("every_token", [True, False])
def test_it_wakes_the_consumer_for_each_token_or_at_the_end(every_token: bool):
    woken: list[bool] = []
    queue = OutputQueue(lambda: woken.append(queue.finished), every_token=every_token)
    for reason in (None, None, "length"):
        queue.put(output(reason))  # type: ignore[arg-type]
    assert woken == ([False, False, True] if every_token else [True])


def test_the_last_output_is_queued_before_the_sequence_counts_as_finished():
    """Another thread may look between the two."""
    seen: list[tuple[bool, bool]] = []

    class Observed(TokenOutput):
        @property
        def finish_reason(self) -> FinishReason:  # type: ignore[override]
            seen.append((queue.has_output, queue.finished))
            return "stop"

    queue = OutputQueue(lambda: None, every_token=False)
    queue.put(object.__new__(Observed))
    assert seen == [(True, False)]
    assert queue.finished


def test_nothing_follows_the_last_output():
    queue = OutputQueue(lambda: None, every_token=False)
    queue.put(output())
    queue.put(output("stop"))
    queue.put(GenerationError("too late"))
    assert len(queue.get_all()) == 2
    assert not queue.is_open


def test_an_error_is_raised_after_the_tokens_before_it():
    queue = OutputQueue(lambda: None, every_token=True)
    queue.put(output())
    queue.put(GenerationError("failed"))
    assert queue.finished
    assert queue.get() == output()
    with pytest.raises(GenerationError, match="failed"):
        queue.get()
