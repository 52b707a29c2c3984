"""`/v1/adapterhub/stats`: how busy the engine is, for people who watch; `/metrics` is for monitoring."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from adapterhub.server.state import State

router = APIRouter(prefix="/v1/adapterhub", tags=["server"])


class Stats(BaseModel):
    """What the engine does now; it names no adapter, so that every key may see it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["adapterhub.stats"] = "adapterhub.stats"
    """The kind of this object."""
    base: str
    """The id of the bare base."""
    base_digest: str | None
    """The base's fingerprint; null for one that has no weights."""
    running: int
    """Running sequences."""
    waiting: int
    """Waiting sequences."""
    tokens: int
    """Tokens generated since the start."""
    tokens_per_second: float
    """Generated tokens for each second of the last steps."""
    resident: int
    """Adapters in LoRA slots."""
    max_loras: int
    """Number of LoRA slots."""
    kv_cache_usage: float
    """The share of the memory for keys and values that running sequences have, 0 to 1."""


@router.get("/stats", operation_id="stats")
def show_stats(state: State) -> Stats:
    """Shows how busy the engine is."""
    stats, fingerprint = state.hub.stats(), state.hub.engine.fingerprint
    return Stats(
        base=state.base_model,
        base_digest=fingerprint.digest if fingerprint else None,
        running=stats.running,
        waiting=stats.waiting,
        tokens=stats.tokens,
        tokens_per_second=stats.tokens_per_second,
        resident=stats.resident,
        max_loras=stats.max_loras,
        kv_cache_usage=stats.kv_cache_usage,
    )
