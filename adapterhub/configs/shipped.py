"""The configurations that ship with the package: listed, copied, and read by name where there is no such file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from adapterhub._files import os_errors_as, user_path, write_atomic
from adapterhub._yaml import read_config_file
from adapterhub.errors import ConfigError

_FOLDER = Path(__file__).parent
_SUFFIX = ".yaml"


@dataclass(frozen=True)
class ShippedConfig:
    """One shipped configuration.

    Attributes:
        name: `<task>/<base>`, as commands take it.
        path: The file in the package.
    """

    name: str
    path: Path

    @property
    def description(self) -> str:
        """What it is for: the first line of the file, which is a comment."""
        return self.path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")

    @property
    def command(self) -> Literal["finetune", "compose-dataset"]:
        """The command that takes it."""
        return "finetune" if "base" in self._content else "compose-dataset"

    @property
    def base(self) -> str | None:
        """The base that it fine-tunes; None for a dataset's."""
        return self._content.get("base")

    @cached_property
    def companions(self) -> list[str]:
        """The names of the files beside it that it needs, such as a system prompt."""
        return sorted({text for text in _texts(self._content) if self._is_companion(text)})

    @cached_property
    def _content(self) -> dict[str, Any]:
        return read_config_file(self.path)

    def _is_companion(self, text: str) -> bool:
        return "/" not in text and (self.path.parent / text).is_file()

    def content(self) -> dict[str, Any]:
        """What the file holds, with the companions' paths as they are in the package."""
        content: dict[str, Any] = self._with_companions(self._content)
        return content

    def _with_companions(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._with_companions(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._with_companions(one) for one in value]
        return str(self.path.parent / value) if value in self.companions else value


def shipped_configs() -> list[ShippedConfig]:
    """All shipped configurations, by name."""
    paths = sorted(_FOLDER.glob(f"*/*{_SUFFIX}"))
    return [ShippedConfig(path.relative_to(_FOLDER).with_suffix("").as_posix(), path) for path in paths]


def copy_config(
    name: str,
    target: str | Path,
    *,
    overwrite: bool = False,
    keep: bool = False,
    make_parents: bool = False,
) -> list[Path]:
    """Copies a shipped configuration and the files that it needs, to be changed.

    Args:
        name: Its name, with or without `.yaml`.
        target: The new file, or an existing folder; its companions go beside it.
        overwrite: Replace files that exist.
        keep: Leave files that exist as they are.
        make_parents: Make the folder if there is none.

    Returns:
        The configuration's file, and those beside it.

    Raises:
        ConfigError: There is no such configuration, a file exists already, or one could not be written. If a file
            exists, nothing is written.
    """
    config, path = _find(name), user_path(target, ConfigError)
    with os_errors_as(ConfigError, f"The configuration could not be copied to {str(path)!r}"):
        path = path / config.path.name if path.is_dir() else path
        if make_parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.is_dir():
            raise ConfigError(
                f"There is no folder {str(path.parent)!r} to copy to.",
                hint="Make it, or add --make-parents.",
            )
        content = {path: config.path.read_bytes()}
        for companion in config.companions:
            content[path.parent / companion] = (config.path.parent / companion).read_bytes()
        changed = [file for file, data in content.items() if not file.exists() or file.read_bytes() != data]
        taken = [] if overwrite else [file for file in changed if file.exists()]
        if taken and not keep:
            raise ConfigError(
                f"{str(taken[0])!r} exists already.",
                hint="Choose another place, or overwrite it with --force.",
            )
        for file in changed if overwrite else set(changed) - set(taken):
            write_atomic(file, content[file])
    return list(content)


def read_config(path: str | Path) -> tuple[dict[str, Any], Path]:
    """Reads a configuration file, or the shipped one of that name where there is no such file.

    Args:
        path: The file, or a shipped configuration's name.

    Returns:
        The content, and the folder that its relative paths start from: the file's own, or the current one for a shipped
        configuration.

    Raises:
        ConfigError: There is neither, or it is not a mapping of names to values.
    """
    file = user_path(path, ConfigError)
    name = file.as_posix().removesuffix(_SUFFIX)
    shipped = {config.name: config for config in shipped_configs()}
    with os_errors_as(ConfigError, f"The configuration {str(path)[:200]!r} could not be read"):
        is_there = file.exists()
    if is_there:
        return read_config_file(file), file.parent
    if name in shipped:
        return shipped[name].content(), Path()
    raise ConfigError(
        f"The configuration {str(path)[:200]!r} could not be read: No such file or directory.",
        hint=_hint(name, shipped),
    )


def _find(name: str) -> ShippedConfig:
    shipped = {config.name: config for config in shipped_configs()}
    wanted = name.removesuffix(_SUFFIX)
    if wanted in shipped:
        return shipped[wanted]
    raise ConfigError(f"There is no shipped configuration {name[:200]!r}.", hint=_hint(wanted, shipped))


def _hint(name: str, shipped: Iterable[str]) -> str:
    near = difflib.get_close_matches(name[:200], shipped, n=1)
    also = f"Did you mean {near[0]!r}? " if near else ""
    return f"{also}`adapterhub ls-configs` lists what ships."


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from _texts(child)
