"""What the server is and how busy it is: vLLM's `/version` and `/load`."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

import adapterhub
from adapterhub.server.state import State

router = APIRouter(tags=["server"])


class Version(BaseModel):
    """The version of adapterhub."""

    version: str


class Load(BaseModel):
    """The number of requests that run or wait, as SGLang and vLLM report it."""

    server_load: int


@router.get("/version")
def show_version() -> Version:
    """Shows the version of adapterhub (vLLM)."""
    return Version(version=adapterhub.__version__)


@router.get("/load")
def show_load(state: State) -> Load:
    """Shows how many sequences run or wait (vLLM)."""
    stats = state.hub.stats()
    return Load(server_load=stats.running + stats.waiting)
