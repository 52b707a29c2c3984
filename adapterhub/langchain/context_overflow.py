"""LangChain's name for a request that is too long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import ContextOverflowError

from adapterhub.errors import RequestTooLongError


class LangChainRequestTooLongError(RequestTooLongError, ContextOverflowError):
    """LangChain's `ContextOverflowError` too, after which its middleware shortens the history."""


@contextmanager
def context_overflow() -> Iterator[None]:
    """Raises a `RequestTooLongError` as LangChain's error too."""
    try:
        yield
    except RequestTooLongError as error:
        raise LangChainRequestTooLongError(error.message, hint=error.hint) from error
