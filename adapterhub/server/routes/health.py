"""Probes: whether the server takes requests. They need no key and tell nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from adapterhub.server.lifecycle import READY
from adapterhub.server.replicas import ReplicatedEngine
from adapterhub.server.state import ServerState, State

router = APIRouter(tags=["Probes"])
_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "It loads its base or shuts down, or none of its replicas is ready"}
}


class Readiness(BaseModel):
    """What the server does, and how many answers are running."""

    status: str
    running: int


@router.get("/health", operation_id="health", response_class=Response, responses=_NOT_READY)
@router.get("/ping", operation_id="ping", response_class=Response, responses=_NOT_READY)
@router.post("/ping", operation_id="ping_post", response_class=Response, responses=_NOT_READY)
async def health(state: State) -> Response:
    """Whether the server takes requests: 200 or 503 with an empty body, as vLLM's `/health` and SageMaker's `/ping`."""
    return Response(status_code=_status(await _stage(state)))


@router.get("/ready", operation_id="ready", response_model=Readiness, responses=_NOT_READY)
async def ready(state: State) -> JSONResponse:
    """As `/health`, with what the server does."""
    stage = await _stage(state)
    readiness = Readiness(status=stage, running=state.lifecycle.running)
    return JSONResponse(readiness.model_dump(), _status(stage))


async def _stage(state: ServerState) -> str:
    stage = state.lifecycle.stage
    if stage != READY or not isinstance(state.hub.engine, ReplicatedEngine):
        return stage
    replicas = await asyncio.to_thread(state.hub.engine.replicas)
    return stage if any(replica.ready for replica in replicas) else "no replica is ready"


def _status(stage: str) -> int:
    return 200 if stage == READY else 503
