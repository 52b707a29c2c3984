"""What every answer and every chunk of a stream begins with."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

import adapterhub
from adapterhub.requests.generation import Generation
from adapterhub.server.generating.answered_by import AnsweredBy
from adapterhub.server.generating.model_names import route_filter_of
from adapterhub.server.metrics import RequestSpan, span_of
from adapterhub.server.protocol.sampling import GenerationBody
from adapterhub.server.state import ServerState


@dataclass(frozen=True)
class AnswerHead:
    """Id, time and server of one answer.

    Attributes:
        id: The answer's id, which holds the request's.
        base_model: The id of the bare base.
        fingerprint: Which server and base answer; with the same one, a seed gives the same answer.
        session_id: The client's `x-session-id`; what the body has no `user` for is of this one.
        span: The request's span, if there is one.
        created: When the answer began, seconds since 1970.
    """

    id: str
    base_model: str
    fingerprint: str
    session_id: str | None = None
    span: RequestSpan | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def begin(cls, prefix: str, request: Request, state: ServerState) -> AnswerHead:
        """The head of an answer that begins now.

        Args:
            prefix: Of the id, such as `chatcmpl-`.
            request: Has the request's id, if the server gives them.
            state: Knows the base.
        """
        request_id = getattr(request.state, "request_id", None) or uuid.uuid4().hex
        base = state.hub.engine.fingerprint
        digest = base.digest[-12:] if base else state.base_model
        return cls(
            f"{prefix}{request_id}",
            state.base_model,
            f"adapterhub-{adapterhub.__version__}-{digest}",
            request.headers.get("x-session-id"),
            span_of(request.scope),
        )

    def options(self, body: GenerationBody, state: ServerState) -> dict[str, Any]:
        """The options of a call of the hub: those that the body has, and those of who sends it.

        Args:
            body: The body.
            state: Knows the caller.

        Raises:
            FieldError: A field is not valid.
        """
        return {"user": self.session_id, **body.options(), "where": route_filter_of(state)}

    def of(self, kind: str, by: AnsweredBy) -> dict[str, Any]:
        """The first fields of an answer or a chunk.

        Args:
            kind: Its `object`.
            by: Who answers.
        """
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": by.model(self.base_model),
            "system_fingerprint": self.fingerprint,
        }

    def answered(self, generation: Generation | None) -> None:
        """Notes an answer that is whole, in the request's span; None is one that was aborted."""
        if self.span and generation:
            self.span.answered(self.id, AnsweredBy.of(generation).model(self.base_model), generation)
