"""The OpenAPI document of the server."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The document, made once; the definitions that bodies bring move to its components.

    Args:
        app: The application.
    """
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        _hoist(document["paths"], schemas)
        app.openapi_schema = document
    return app.openapi_schema


def _hoist(node: Any, schemas: dict[str, Any]) -> None:
    if isinstance(node, dict):
        schemas.update(node.pop("$defs", {}))
        for child in node.values():
            _hoist(child, schemas)
    elif isinstance(node, list):
        for child in node:
            _hoist(child, schemas)
