"""`/v1/models`: the bare base, the router's choice, and every adapter that can be served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from adapterhub.server.generating.model_list import find_model, list_models
from adapterhub.server.state import State

router = APIRouter(tags=["OpenAI"])


@router.get("/v1/models")
async def list_served_models(state: State) -> dict[str, Any]:
    """Lists the models."""
    return {"object": "list", "data": await state.hub._run_off_loop(list_models, state)}


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, state: State) -> dict[str, Any]:
    """Describes one model, which any `model` of a request names."""
    return await state.hub._run_off_loop(find_model, model, state)
