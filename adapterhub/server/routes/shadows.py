"""`/v1/adapterhub/shadows`: what became of the copies of requests that shadows got; for admins."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from adapterhub.server.state import State

router = APIRouter(prefix="/v1/adapterhub", tags=["registry"])


class ShadowReport(BaseModel):
    """What became of the copies of an alias' requests that one version got, since the start."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    alias: str
    """The alias whose requests are copied."""
    shadow: str
    """The version that got the copies."""
    sent: int
    """Copies that were sent and have ended."""
    same: int
    """Its answer had the same text."""
    different: int
    """It had another text."""
    failed: int
    """It could not answer."""
    dropped: int
    """There was no room."""
    seconds: float
    """Time of its answers in the engine."""
    seconds_of_main: float
    """The same of the answers that they were compared with."""


class ShadowReports(BaseModel):
    """Every alias and version that has had copies."""

    object: Literal["list"] = "list"
    data: list[ShadowReport]


@router.get("/shadows", operation_id="list_shadows")
async def list_shadows(state: State) -> ShadowReports:
    """Compares the answers of shadows with those that clients got; no texts."""
    return ShadowReports(
        data=[
            ShadowReport(alias=alias, shadow=shadow, sent=counts.sent, **vars(counts))
            for (alias, shadow), counts in sorted(state.shadows.counts.items())
        ]
    )
