"""Functions that the user wrote, which a setting names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def import_function(name: str) -> Callable[..., Any]:
    """Imports a function, which runs its module's code.

    Args:
        name: `module.function`, `module:function` or `path/to/file.py:function`.

    Raises:
        Exception: There is no such function, or whatever its module raises.
    """
    source, _, attribute = name.rpartition(":" if ":" in name else ".")
    module = _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    function = getattr(module, attribute)
    if not callable(function):
        raise TypeError(f"{attribute} is no function")
    return function  # type: ignore[no-any-return]


def _load_file(path: Path) -> ModuleType:
    name = str(path.resolve())  # the name of no other module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it while it runs
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
