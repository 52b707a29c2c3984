"""A converter that the user wrote: a function from a row to its messages, named in the configuration."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from adapterhub.dataset.converters import Columns, Conversation, Converter, UnusableRowError
from adapterhub.errors import ConfigError, DatasetError


def load_own_converter(name: str) -> Converter:
    """Imports a converter.

    Args:
        name: `module.function`, `module:function` or `path/to/file.py:function`. The function takes a row (a dict) and
            returns `{"messages": [...], "tools": [...]}`, a list of messages, or None to leave the row out.

    Raises:
        ConfigError: There is no such function, or its module fails.
    """
    module_name, _, function_name = name.rpartition(":" if ":" in name else ".")
    try:
        module = (
            _load_file(Path(module_name))
            if module_name.endswith(".py")
            else importlib.import_module(module_name)
        )
        function = getattr(module, function_name)
    except Exception as error:  # the module is the user's
        raise ConfigError(
            f"The converter {name!r} could not be imported: {type(error).__name__}: {error}",
            hint="Give module.function, or file.py:function with a path from the configuration file's folder.",
        ) from error
    return lambda columns: _converted(name, function, columns)


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
