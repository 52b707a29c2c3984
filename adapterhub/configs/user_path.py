"""A path in a configuration, as its author writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from adapterhub._files import user_path
from adapterhub.errors import ConfigError


def _expanded(path: Path) -> Path:
    try:
        return user_path(path, ConfigError)
    except ConfigError as error:
        raise ValueError(error.message.removesuffix(".")) from error


UserPath = Annotated[Path, AfterValidator(_expanded)]
"""A path whose `~` stands for a home folder."""
