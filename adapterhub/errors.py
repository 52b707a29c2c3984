"""The errors of adapterhub, one tree.

    AdapterHubError
    ├── ConfigError (ValueError)
    ├── InvalidRequestError (ValueError)
    ├── RegistryError
    │   ├── AdapterNotFoundError (LookupError)
    │   ├── AdapterDisabledError
    │   ├── AdapterExistsError
    │   ├── AdapterInvalidError
    │   ├── RegistryLockedError
    │   └── RegistryUnavailableError
    ├── AdapterIncompatibleError
    ├── RoutingError
    ├── EngineError
    │   ├── CapacityError
    │   ├── RequestTooLongError
    │   ├── GenerationError
    │   ├── DeadlineError
    │   └── EngineClosedError
    ├── DatasetError
    ├── TrainingError
    ├── ExportError
    └── ToolError

Every error has a `message`, one sentence that states what happened, a `hint` with what to do, and `retryable`: whether
the same call may succeed later with nothing changed. A server answers with its `http_status` and `code`; the codes are
OpenAI's where it has one.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeAlias

if TYPE_CHECKING:
    from pydantic import ValidationError

_Location: TypeAlias = tuple[int | str, ...]

_MAX_LOCATION = 80
_MAX_CAUSES = 8


class AdapterHubError(Exception):
    """Base class of every error that adapterhub raises on purpose.

    Args:
        message: What happened, as one sentence.
        hint: What the reader can do about it.
    """

    retryable: ClassVar[bool] = False
    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500

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
        # The default pickles only `args`; errors of a process pool have to keep their hint.
        return (_rebuild, (type(self), self.args, self.hint))


def _rebuild(kind: type[AdapterHubError], args: tuple[str, ...], hint: str | None) -> AdapterHubError:
    return kind(*args, hint=hint)


class ConfigError(AdapterHubError, ValueError):
    """A setting or a configuration file is not valid."""

    code = "invalid_config"


class InvalidRequestError(AdapterHubError, ValueError):
    """A request is not valid: its prompt, roles, options, schema or adapter reference."""

    code = "invalid_value"
    http_status = 400


class RegistryError(AdapterHubError):
    """The registry could not be read or changed."""

    code = "registry_error"


class AdapterNotFoundError(RegistryError, LookupError):
    """No adapter, version or alias of that name is registered."""

    code = "model_not_found"
    http_status = 404


class AdapterDisabledError(RegistryError):
    """The version is registered, but its status is `disabled`, so it is not served."""

    code = "adapter_disabled"
    http_status = 404  # not 409, after which OpenAI's clients send the request again


class AdapterExistsError(RegistryError):
    """An alias still points to the version to remove."""

    code = "adapter_exists"
    http_status = 409


class AdapterInvalidError(RegistryError):
    """The adapter's files are damaged, unsafe or contradict each other."""

    code = "adapter_invalid"
    http_status = 422


class RegistryLockedError(RegistryError):
    """The registry's lock could not be acquired in time: another writer holds it."""

    retryable = True
    code = "registry_locked"
    http_status = 503


class RegistryUnavailableError(RegistryError):
    """The store that a registry is in, such as S3, did not answer."""

    retryable = True
    code = "registry_unavailable"
    http_status = 503


class AdapterIncompatibleError(AdapterHubError):
    """The adapter does not fit the base: other weights, shapes, modules, or a kind that cannot be served."""

    code = "adapter_incompatible"
    http_status = 422


class RoutingError(AdapterHubError):
    """The router cannot decide at all; an uncertain decision is a `RouteDecision`, not an error."""

    code = "routing_error"


class EngineError(AdapterHubError):
    """The engine could not serve a request."""

    code = "engine_error"


class CapacityError(EngineError):
    """The engine is full; the same request may be accepted later."""

    retryable = True
    code = "rate_limit_exceeded"
    http_status = 429


class RequestTooLongError(EngineError):
    """Prompt and completion do not fit the context of the base."""

    code = "context_length_exceeded"
    http_status = 400


class GenerationError(EngineError):
    """Generation failed, or the answer does not match its output format."""

    code = "generation_failed"


class DeadlineError(EngineError):
    """The request ran out of time."""

    retryable = True
    code = "deadline_exceeded"
    http_status = 504


class EngineClosedError(EngineError):
    """The engine was closed; the request was not served."""

    code = "overloaded"
    http_status = 503


class DatasetError(AdapterHubError):
    """A dataset cannot be read or holds unusable records."""

    code = "dataset_error"
    http_status = 422


class TrainingError(AdapterHubError):
    """Fine-tuning failed or changed nothing."""

    code = "training_failed"


class ExportError(AdapterHubError):
    """A merge or export failed; nothing was written."""

    code = "export_failed"


class ToolError(AdapterHubError):
    """A tool cannot use its input."""

    code = "tool_error"
    http_status = 400


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception ends its thread on purpose, as Ctrl-C does.

    All others are failures of what was done, also those that are no `Exception`: panics of Rust code.
    """
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


def traceback_without_texts(error: BaseException) -> str:
    """The traceback of an unexpected exception and of its causes, for the log.

    What the exceptions say is left out: it may quote a prompt or an answer.
    """
    parts: list[str] = []
    cause: BaseException | None = error
    while cause and len(parts) < _MAX_CAUSES:
        lines = traceback.format_tb(cause.__traceback__)
        parts.append(f"{''.join(lines)}{type(cause).__module__}.{type(cause).__qualname__}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\nafter\n".join(parts)


def describe_validation(
    error: ValidationError,
    *,
    limit: int | None = 1,
    written: Callable[[_Location], _Location] | None = None,
) -> str:
    """Describes what is wrong in which field, without the values, which may be confidential or huge.

    Args:
        error: From pydantic.
        limit: How many of its problems to name; None names all.
        written: From a field's location to how the reader's file names it.

    Returns:
        `field.name: message`, joined by `; `.
    """
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(
        _describe(written(problem["loc"]) if written else problem["loc"], problem["msg"])
        for problem in problems[:limit]
    )


def _describe(location: _Location, message: str) -> str:
    field = ".".join(str(part)[:_MAX_LOCATION] for part in location)
    return f"{field}: {message}" if field else message
