"""`/v1/fleet`: the vLLM servers behind this one, and taking one out of service; for admins."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from adapterhub.errors import InvalidRequestError
from adapterhub.server.protocol.body import JsonBody, describe_body
from adapterhub.server.replicas import ReplicatedEngine, replicas_of
from adapterhub.server.routes.dependencies import Audited
from adapterhub.server.state import State
from adapterhub.vllm.replica import ReplicaState

router = APIRouter(prefix="/v1/fleet", tags=["fleet"])


class ReplicaReport(BaseModel):
    """One server."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    url: str
    """Its address."""
    object: Literal["adapterhub.replica"] = "adapterhub.replica"
    """The kind of this object."""
    ready: bool
    """Whether it takes requests."""
    reason: str | None
    """Why not."""
    draining: bool
    """Whether it gets no new requests because it is to end."""
    in_flight: int
    """Requests that it answers now."""
    adapters: list[str]
    """The model names of the adapters that it has loaded."""
    loads: int
    """How many adapters it was told to load so far."""
    failures: int
    """How often it was found unavailable so far."""
    started: float | None
    """When its process started, seconds since 1970."""

    @classmethod
    def of(cls, state: ReplicaState) -> Self:
        """A server, for clients.

        Args:
            state: Its snapshot.
        """
        fields: dict[str, Any] = {
            name: getattr(state, name) for name in cls.model_fields.keys() & vars(state)
        }
        return cls(**fields, started=state.started_at)


class Fleet(BaseModel):
    """All servers; none where the engine runs in this process."""

    object: Literal["list"] = "list"
    data: list[ReplicaReport]


class DrainRequest(BaseModel):
    """Takes a server out of service, or puts it back."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    url: str = Field(min_length=1, max_length=2000)
    """The server, as `GET /v1/fleet` names it."""
    draining: bool = True
    """Whether it gets no new requests; those that it has run on."""


@router.get("", operation_id="show_fleet")
def show_fleet(state: State) -> Fleet:
    """Shows each server: whether it takes requests, what it has loaded, what it does."""
    return Fleet(data=[ReplicaReport.of(replica) for replica in replicas_of(state.hub) or ()])


@router.post("/drain", operation_id="drain_replica", openapi_extra=describe_body(DrainRequest))
def drain_replica(
    body: Annotated[DrainRequest, Depends(JsonBody(DrainRequest))], state: State, audited: Audited
) -> ReplicaReport:
    """Gives a server no new requests, so that it can be stopped once `in_flight` is 0, or gives it requests again."""
    engine = state.hub.engine
    with audited("drain" if body.draining else "undrain", body.url):
        if not isinstance(engine, ReplicatedEngine):
            raise InvalidRequestError(
                "The engine runs in this process.", hint="It has replicas with `--engine URL`."
            )
        engine.drain(body.url, body.draining)
    (drained,) = (replica for replica in engine.replicas() if replica.url == body.url)
    return ReplicaReport.of(drained)
