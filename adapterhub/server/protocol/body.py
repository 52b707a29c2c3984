"""Reads a JSON body off the event loop where it is large, and describes it for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from adapterhub.server.errors import FieldError
from adapterhub.server.metrics import span_of
from adapterhub.server.protocol.body_size import check_size, check_text_size
from adapterhub.server.protocol.fields import Body, check_fields
from adapterhub.server.state import ServerState

_INLINE_BYTES = 64 * 1024
"""A smaller body is parsed in a few milliseconds at most."""

AnyBody = TypeVar("AnyBody", bound=BaseModel)


class JsonBody(Generic[AnyBody]):
    """A dependency that reads the body as a model; whatever is wrong with it is a 400. No body is an empty object.

    Args:
        model: The model.
    """

    def __init__(self, model: type[AnyBody]) -> None:
        self._model = model

    async def __call__(self, request: Request) -> AnyBody:
        """The body.

        Raises:
            FieldError: It is no JSON, or a field is not valid, not supported or not known.
        """
        _check_content_type(request)
        try:
            content = await request.body()
        except ClientDisconnect as error:
            raise FieldError("The body has not come whole.", None) from error
        state: ServerState = request.app.state.server
        unknown_fields = state.config.unknown_fields
        if len(content) <= _INLINE_BYTES:
            body = self._parse(content, unknown_fields)
        else:
            body = await state.hub._run_off_loop(self._parse, content, unknown_fields)
        if span := span_of(request.scope):
            span.asked({name: getattr(body, name) for name in body.model_fields_set})
        return body

    def _parse(self, content: bytes, unknown_fields: str) -> AnyBody:
        if len(content) > _INLINE_BYTES:
            check_text_size(content)
        try:  # in two steps: the model's own reader takes ten times as long
            value = from_json(content or b"{}", allow_inf_nan=False)
        except ValueError as error:
            raise FieldError(f"Invalid JSON: {error}.", None) from None
        if isinstance(value, dict):
            check_size(value)
        try:
            body = self._model.model_validate(value)
        except ValidationError as error:
            raise FieldError.of(error.errors(), value) from None
        if isinstance(body, Body):  # elsewhere the models refuse other fields
            check_fields(body, unknown_fields)
        return body


def describe_body(
    model: type[BaseModel], example: Mapping[str, Any] | None = None, *, required: bool = True
) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its body with `JsonBody`.

    Args:
        model: The body's model.
        example: A body; if not given, the model has its own.
        required: Whether there has to be a body.
    """
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    content = {"application/json": {"schema": schema, **({"example": example} if example else {})}}
    return {"requestBody": {"required": required, "content": content}}


def describe_answer(example: Mapping[str, Any], *, streams: bool = True) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route whose answers are made by hand.

    Args:
        example: An answer.
        streams: Whether it may also be a stream of events.
    """
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}, "example": example}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {200: {"description": "The answer.", "content": content}}


def _check_content_type(request: Request) -> None:
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise FieldError(f"The body is of the type {kind[:80]!r}.", None, hint="Send application/json.")
