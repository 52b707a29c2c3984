"""A converter that the user wrote: a function from a row to its messages, named in the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adapterhub._user_code import import_function
from adapterhub.dataset.columns import Columns, UnusableRowError
from adapterhub.dataset.converters import Conversation, Converter
from adapterhub.errors import ConfigError, DatasetError


def load_own_converter(name: str) -> Converter:
    """Imports a converter.

    Args:
        name: `module.function`, `module:function` or `path/to/file.py:function`. The function takes a row (a dict) and
            returns `{"messages": [...], "tools": [...]}`, a list of messages, or None to leave the row out.

    Raises:
        ConfigError: There is no such function, or its module fails.
    """
    try:
        function = import_function(name)
    except Exception as error:  # the module is the user's
        raise ConfigError(
            f"The converter {name!r} could not be imported: {type(error).__name__}: {error}",
            hint="Give module.function, or file.py:function with a path from the configuration file's folder.",
        ) from error
    return lambda columns: _converted(name, function, columns)


def _converted(name: str, function: Callable[[dict[str, Any]], Any], columns: Columns) -> Conversation:
    try:
        result = function(dict(columns.row))
    except Exception as error:  # its text may quote the row
        raise DatasetError(
            f"The converter {name!r} raised {type(error).__name__} on row {columns.number}.",
            hint="Return None for a row to leave out. `adapterhub --debug` shows the traceback.",
        ) from error
    if result is None:
        raise UnusableRowError("left out by the converter")
    return result if isinstance(result, dict) else {"messages": result}
