"""The standard streams of the command, as shells, services and cron leave them: another encoding, closed, full."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TextIO

from adapterhub.errors import ConfigError

_STANDARD_FDS = 3
_ERRORS = "adapterhub.replace"


def open_streams(warn: Callable[[str], None]) -> None:
    """Makes all three standard streams usable: call it before anything is read or printed.

    Characters that the encoding of standard output lacks become `?`. A closed output stream discards what is printed,
    and a closed standard input raises `ConfigError` when it is read.

    Args:
        warn: Receives a sentence, once for each reason, if what is printed is changed or lost.
    """
    _occupy_closed_descriptors()
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BufferedReader(_ClosedInput()), encoding="utf-8")
    sys.stderr = sys.stderr or _discarding()
    if sys.stdout is None:
        sys.stdout = _discarding()
        warn("Standard output is closed: what is printed there is lost.")
    elif isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error(_ERRORS, _Replacing(warn))
        sys.stdout.reconfigure(errors=_ERRORS)


def encodes_all(stream: TextIO) -> bool:
    """Whether a stream's encoding has every character."""
    return codecs.lookup(stream.encoding or "utf-8").name.startswith("utf")


def discard_output() -> None:
    """Discards what could not be written to standard output: Python would report it again when it flushes at exit."""
    with suppress(OSError, ValueError):  # ValueError: the stream has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _ClosedInput(io.RawIOBase):
    """The standard input of a process that was started without one."""

    name = "<stdin>"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object, /) -> NoReturn:
        raise ConfigError(
            "Standard input is closed, so nothing can be read from it.",
            hint="Pipe the text in, or give it as an argument.",
        )


class _Replacing:
    """An error handler of codecs that replaces characters, and warns of the first one."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn: Callable[[str], None] | None = warn

    def __call__(self, error: UnicodeError) -> tuple[str | bytes, int]:
        warn, self._warn = self._warn, None
        if warn:
            hint = (
                "" if encodes_all(sys.stdout) else " Set PYTHONIOENCODING=utf-8, or print JSON with --json."
            )
            encoding = sys.stdout.encoding
            warn(
                f"Standard output is {encoding}, which lacks some characters; they are printed as '?'.{hint}"
            )
        return codecs.replace_errors(error)


def _occupy_closed_descriptors() -> None:
    """Opens closed standard descriptors: a file that got one of their numbers would receive what libraries print."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < _STANDARD_FDS:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _discarding() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - open until the process ends
