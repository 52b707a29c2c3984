"""The errors of adapterhub, one tree.

    AdapterHubError
    ├── ConfigError (ValueError)
    ├── RegistryError
    │   ├── AdapterNotFoundError (LookupError)
    │   ├── AdapterExistsError
    │   └── AdapterInvalidError
    ├── AdapterIncompatibleError
    ├── RoutingError
    ├── EngineError
    │   ├── CapacityError
    │   ├── RequestTooLongError
    │   ├── GenerationError
    │   └── DeadlineError
    ├── DatasetError
    ├── TrainingError
    ├── ExportError
    └── ToolError

Every error is one sentence that says what happened, a `hint` that says what to do, and `retryable`: whether the
same call may succeed later with nothing changed.
"""

from __future__ import annotations

from typing import ClassVar


class AdapterHubError(Exception):
    """Base class of every error that adapterhub raises on purpose.

    Args:
        message: What happened, as one sentence.
        hint: What the reader can do about it.
    """

    retryable: ClassVar[bool] = False
    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def message(self) -> str:
        """What happened, without the hint."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.message} Hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # The default keeps only `args`; the hint has to survive a process pool too.
        return (_rebuild, (type(self), self.args, self.hint))


def _rebuild(kind: type[AdapterHubError], args: tuple[str, ...], hint: str | None) -> AdapterHubError:
    return kind(*args, hint=hint)


class ConfigError(AdapterHubError, ValueError):
    """A setting, argument or configuration file is not valid."""

    code = "config"


class RegistryError(AdapterHubError):
    """The registry could not be read or changed."""

    code = "registry"


class AdapterNotFoundError(RegistryError, LookupError):
    """No adapter, version or alias of that name is registered."""

    code = "adapter_not_found"


class AdapterExistsError(RegistryError):
    """The name, version or alias is taken."""

    code = "adapter_exists"


class AdapterInvalidError(RegistryError):
    """The adapter's files are damaged, unsafe or contradict each other."""

    code = "adapter_invalid"


class AdapterIncompatibleError(AdapterHubError):
    """The adapter does not fit the base: other weights, shapes, modules, or a kind that cannot be served."""

    code = "adapter_incompatible"


class RoutingError(AdapterHubError):
    """The router cannot decide at all; an uncertain decision is a `RouteDecision`, not an error."""

    code = "routing"


class EngineError(AdapterHubError):
    """The engine could not serve a request."""

    code = "engine"


class CapacityError(EngineError):
    """The engine is full; the same request may be accepted later."""

    retryable = True
    code = "capacity"


class RequestTooLongError(EngineError):
    """Prompt and answer do not fit the context of the base."""

    code = "request_too_long"


class GenerationError(EngineError):
    """Generation failed part of the way."""

    code = "generation"


class DeadlineError(EngineError):
    """The request ran out of time."""

    retryable = True
    code = "deadline"


class DatasetError(AdapterHubError):
    """A dataset cannot be read or holds unusable records."""

    code = "dataset"


class TrainingError(AdapterHubError):
    """Fine-tuning failed or changed nothing."""

    code = "training"


class ExportError(AdapterHubError):
    """A merge or export failed; nothing was written."""

    code = "export"


class ToolError(AdapterHubError):
    """A tool was given something that it cannot work with."""

    code = "tool"
