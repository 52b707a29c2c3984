"""`/v1/models`: the bare base, the router's choice, and every adapter that can be served."""

from __future__ import annotations

from fastapi import APIRouter

from adapterhub.server.generating.model_list import describe_model, describe_models
from adapterhub.server.protocol.models import Model, ModelList
from adapterhub.server.state import State

router = APIRouter(tags=["OpenAI"])


@router.get("/v1/models")
async def list_models(state: State) -> ModelList:
    """Lists the models."""
    return ModelList(data=await state.hub._run_off_loop(describe_models, state))


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, state: State) -> Model:
    """Describes one model, which any `model` of a request names."""
    return await state.hub._run_off_loop(describe_model, model, state)
