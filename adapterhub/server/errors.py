"""Errors as OpenAI's error object: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from adapterhub.errors import (
    AdapterHubError,
    AdapterNotFoundError,
    InvalidRequestError,
    RoutingError,
    traceback_without_texts,
)
from adapterhub.server.middleware.request_id import request_id

_log = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    400: "invalid_value",
    401: "invalid_api_key",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    501: "not_implemented",
    503: "overloaded",
}
_NO_MODEL = AdapterNotFoundError.code
_RETRY_SECONDS = "1"
"""OpenAI's clients wait this long, and give up on more than two minutes."""
_INTERNAL = "The server failed. Its log says why, under this request's id."
_PYTHON_WORDS = re.compile(r"a valid dictionary(?: or instance of \w+)?")
# Of the servers and stores behind this one.
_URL = re.compile(r"\b(?:https?|s3|gs)://[^\s'\",;]*[^\s'\",;:.)]")
_ADDRESS = "[address]"
# Not what begins a path of this API.
_PATH = re.compile(r"(?<![\w:/.])/(?!v1\b)[\w.@+-]+(?:/[\w.@+-]+)+|\b[A-Za-z]:\\[\w.@+\\-]+")


class FieldError(InvalidRequestError):
    """A field of the body is not valid, not supported or not known.

    Args:
        message: What is wrong.
        param: The field, as `messages.0.content`.
        code: OpenAI's code: `invalid_value`, `unsupported_parameter` or `unknown_parameter`.
        hint: What to do.
    """

    def __init__(
        self, message: str, param: str | None, code: str = "invalid_value", *, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.code = code  # type: ignore[misc]  # of this error, not of its class

    @classmethod
    def of(cls, problems: Iterable[Mapping[str, Any]], body: Any = None) -> FieldError:
        """From the `errors()` of pydantic; values are left out, for they may be confidential or huge.

        Args:
            problems: What is wrong.
            body: The body as JSON, which tells its fields from pydantic's names for the members of a union.
        """
        problem = max(problems, key=_nearness)
        field = ".".join(map(str, _location(problem, body)))[:100]
        message = _PYTHON_WORDS.sub("an object", problem["msg"].removeprefix("Value error, "))
        return cls(f"{field}: {message}." if field else f"{message}.", field or None)


def error_object(error: Exception) -> dict[str, Any]:
    """OpenAI's error object, for an answer or an event of a stream.

    What clients cannot have caused is logged, and not told.
    """
    status = http_status(error)
    if isinstance(error, RoutingError):
        _log.warning("Request %s: the router cannot choose: %s", request_id.get(), error)
        return _object(
            "The model 'auto' is not available: the router cannot choose.", _type(status), "model", _NO_MODEL
        )
    if not isinstance(error, AdapterHubError) or (status >= 500 and not error.retryable and status != 503):
        _log.error("Request %s failed:\n%s", request_id.get(), _loggable(error))
        return _object(_INTERNAL, "server_error", None, "internal_error")
    return _object(_public_message(error), _type(status), _param(error), error.code)


def _loggable(error: Exception) -> str:
    """A failure in full, but for what others' exceptions say, which may quote a prompt or an answer."""
    message = f"{error}\n" if isinstance(error, AdapterHubError) else ""
    return message + traceback_without_texts(error)


def _public_message(error: AdapterHubError) -> str:
    """What an error says, without the paths and addresses that only operators may know; these are logged."""
    message = error.message if error.hint is None else f"{error.message} {error.hint}"
    if urls := dict.fromkeys(_URL.findall(message)):
        _log.warning("Request %s failed (%s): %s", request_id.get(), error.code, ", ".join(urls))
        message = _URL.sub(_ADDRESS, message)
    return _PATH.sub(_last_part, message)


def error_response(error: Exception, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that failed.

    Args:
        error: What happened.
        headers: Further headers.
    """
    # What a server behind this one asks for is passed on.
    seconds = str(getattr(error, "retry_after", None) or _RETRY_SECONDS)
    retry = {"retry-after": seconds} if getattr(error, "retryable", False) else {}
    return _response(error_object(error), http_status(error), {**retry, **(headers or {})})


def http_status(error: Exception) -> int:
    """The status of the answer to a request that failed."""
    if isinstance(error, RoutingError):
        return 404  # of the model `auto`, which is none without anything to route by
    return error.http_status if isinstance(error, AdapterHubError) else 500


def note_error(scope: Scope, error: Exception) -> None:
    """Leaves the code of the error that ended a request in its state, for the span.

    Args:
        scope: The request's.
        error: What happened.
    """
    code = error.code if isinstance(error, AdapterHubError) else "internal_error"
    scope.setdefault("state", {})["error_code"] = code


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error of an application OpenAI's error object."""

    async def answer(request: Request, error: Exception) -> Response:
        note_error(request.scope, error)
        return error_response(error)

    for kind in (AdapterHubError, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, _answer_http)  # type: ignore[arg-type]  # of this class only
    app.add_exception_handler(RequestValidationError, _answer_validation)  # type: ignore[arg-type]


async def _answer_http(request: Request, error: HTTPException) -> Response:
    status, message = error.status_code, str(error.detail)
    if message == "Not Found":
        message = f"There is no {request.method} {request.url.path[:200]}."
    body = _object(message, _type(status), None, _CODES.get(status, "error"))
    return _response(body, status, error.headers)


def _response(body: Mapping[str, Any], status: int, headers: Mapping[str, str] | None) -> Response:
    # With a space after each colon, as OpenAI writes it: litellm looks for `"code": "context_length_exceeded"`.
    return Response(json.dumps(body), status, headers, media_type="application/json")


async def _answer_validation(_: Request, error: RequestValidationError) -> Response:
    """Bodies and parameters that FastAPI checks: 400, as OpenAI answers, not 422."""
    problems = error.errors()
    where = problems[0]["loc"][0]
    inside = [{**problem, "loc": problem["loc"][1:]} for problem in problems if problem["loc"][0] == where]
    return error_response(FieldError.of(inside, error.body if where == "body" else None))


def _object(message: str, kind: str, param: str | None, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _type(status: int) -> str:
    return "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")


def _param(error: AdapterHubError) -> str | None:
    """The field of the body that is wrong, if that is known."""
    if isinstance(error, FieldError):
        return error.param
    if error.code == _NO_MODEL:
        return "model"
    cause = error.__cause__
    location = cause.errors(include_input=False)[0]["loc"] if isinstance(cause, ValidationError) else ()
    return str(location[0]) if location else None


def _nearness(problem: Mapping[str, Any]) -> tuple[bool, int]:
    """Of the members of a union, the body comes nearest to one whose types it has, and that fails deep in it."""
    return not problem["type"].endswith(("_type", "_parsing")), len(problem["loc"])


def _location(problem: Mapping[str, Any], body: Any) -> list[int | str]:
    if body is None:
        return list(problem["loc"])
    location: list[int | str] = []
    for part in problem["loc"]:
        if _holds(body, part):
            location.append(part)
            body = body[part]
    return [*location, problem["loc"][-1]] if problem["type"] == "missing" else location


def _holds(inside: Any, part: int | str) -> bool:
    if isinstance(inside, list):
        return isinstance(part, int) and part < len(inside)
    return isinstance(inside, Mapping) and part in inside


def _last_part(path: re.Match[str]) -> str:
    return re.split(r"[/\\]", path.group())[-1]
