"""Parsing YAML that may be damaged or hostile, and configuration files.

Import it where it is used: PyYAML takes 20 ms.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from adapterhub.errors import ConfigError

_QUOTED = re.compile(r"'([^']*)'")


class _WithoutAliases(yaml.SafeLoader):
    # With aliases a small text can describe a huge object.
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed")
        return super().compose_node(parent, index)


def parse_yaml(text: str, *, aliases: bool = True) -> Any:
    """Parses one YAML document, as `yaml.safe_load` does.

    Args:
        text: The document. Parsing takes about 10 s for each megabyte, so callers bound it.
        aliases: Whether a node may be used again by its anchor.

    Raises:
        ValueError: It is not YAML, or is nested too deep. The message has the place and the reason, not the line.
    """
    try:
        return yaml.load(text, yaml.SafeLoader if aliases else _WithoutAliases)  # noqa: S506  both are safe
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        # Not from the error, which holds the line.
        raise ValueError(f"{place}{_QUOTED.sub(_without_text, error.problem or 'it is not YAML')}") from None
    except yaml.reader.ReaderError as error:
        raise ValueError("it has characters that YAML does not allow") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    # PyYAML's constructors raise these on values such as `!!bool x`, `2024-13-01` and `!!timestamp x`.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise ValueError("a value does not fit its type") from None


def _without_text(quoted: re.Match[str]) -> str:
    # Some reasons quote what was found, such as a tag or an alias; '<block end>' and '}' are YAML's own.
    return quoted[0] if re.fullmatch(r"<[a-z ]+>|\W", quoted[1]) else "..."


def read_config_file(path: Path) -> dict[str, Any]:
    """Reads a configuration file: JSON if its name ends in `.json`, else YAML.

    Args:
        path: The file, UTF-8.

    Raises:
        ConfigError: The file cannot be read, or is not a mapping of names to values.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = _parse_json(text) if path.suffix == ".json" else parse_yaml(text)
        _check_unicode(content)
    except OSError as error:
        raise ConfigError(f"The configuration {str(path)!r} could not be read: {error.strerror}.") from error
    except ValueError as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error
        raise ConfigError(f"The configuration {str(path)!r} could not be read: {reason}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"The configuration {str(path)!r} is not a mapping of names to values.")
    return content


def _check_unicode(content: Any) -> None:
    """Escapes can spell half of a surrogate pair, which cannot be written and makes pydantic's errors fail."""
    try:
        json.dumps(content, ensure_ascii=False, skipkeys=True, default=str).encode()
    except UnicodeEncodeError:
        raise ValueError("an escape is half of a surrogate pair") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
