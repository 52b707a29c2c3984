"""The OpenAPI document of the server."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The document, made once; the definitions that bodies bring move to its components.

    Args:
        app: The application.
    """
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        _hoist(document["paths"], schemas)
        schemas["Error"] = _ERROR
        for operations in document["paths"].values():
            for operation in operations.values():
                _describe_errors(operation["responses"])
        app.openapi_schema = document
    return app.openapi_schema


def _describe_errors(responses: dict[str, Any]) -> None:
    """Every error has OpenAI's form; FastAPI's own 422 is a 400 here."""
    responses.pop("422", None)
    schema = {"$ref": "#/components/schemas/Error"}
    responses["default"] = {"description": "An error.", "content": {"application/json": {"schema": schema}}}


def _hoist(node: Any, schemas: dict[str, Any]) -> None:
    if isinstance(node, dict):
        schemas.update(node.pop("$defs", {}))
        for child in node.values():
            _hoist(child, schemas)
    elif isinstance(node, list):
        for child in node:
            _hoist(child, schemas)
