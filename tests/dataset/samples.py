"""Samples for tests of the stages."""

from typing import Any

from adapterhub.dataset.records import Record, Sample


def sample(user: str, answer: str, *, system: str | None = None, source: str = "a", **fields: Any) -> Sample:
    """One question and its answer."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return Sample(Record.model_validate({"messages": messages, "line": 1}), source, **fields)


def texts(samples: list[Sample]) -> list[str]:
    """The answers."""
    return [one.record.messages[-1].content or "" for one in samples]
