"""Sends whole answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from adapterhub.server.generating.answered_by import AnsweredBy
from adapterhub.server.protocol.fields import Body


def json_answer(answer: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    """An answer as JSON.

    Args:
        answer: The answer.
        headers: Further headers.
    """
    return Response(to_json(answer), headers=dict(headers), media_type="application/json")


def answer_headers(by: AnsweredBy, body: Body) -> dict[str, str]:
    """The headers of an answer: who gave it, and the fields of the request that had no effect."""
    ignored = body.ignored_fields
    return by.headers | ({"x-adapterhub-ignored": ", ".join(ignored)} if ignored else {})
