"""vLLM's and SGLang's paths that load and unload adapters, for admins.

Paths, fields, codes and texts are those of vLLM 0.33 and SGLang 0.5.23, except that files that cannot be served are a
4xx with the reason, where vLLM answers 500.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from adapterhub.errors import AdapterHubError, InvalidRequestError
from adapterhub.server.adapters.allowed_folders import allowed_folder
from adapterhub.server.protocol.body import JsonBody, describe_body
from adapterhub.server.protocol.lora_adapters import (
    LoadLoraAdapterRequest,
    LoadSglangLoraAdapterRequest,
    SglangLoraUpdate,
    UnloadLoraAdapterRequest,
)
from adapterhub.server.routes.dependencies import Audited
from adapterhub.server.state import ServerState, State

router = APIRouter(tags=["LoRA adapters"])


@router.post(
    "/v1/load_lora_adapter",
    response_class=PlainTextResponse,
    openapi_extra=describe_body(LoadLoraAdapterRequest),
)
def load_lora_adapter(
    body: Annotated[LoadLoraAdapterRequest, Depends(JsonBody(LoadLoraAdapterRequest))],
    state: State,
    audited: Audited,
) -> str:
    """Registers an adapter from an allowed folder under a name, and loads it (vLLM)."""
    with audited("load", body.lora_name):
        _load(state, body.lora_name, body.lora_path, load_inplace=body.load_inplace)
    return f"Success: LoRA adapter '{body.lora_name}' added successfully."


@router.post(
    "/v1/unload_lora_adapter",
    response_class=PlainTextResponse,
    openapi_extra=describe_body(UnloadLoraAdapterRequest),
)
def unload_lora_adapter(
    body: Annotated[UnloadLoraAdapterRequest, Depends(JsonBody(UnloadLoraAdapterRequest))],
    state: State,
    audited: Audited,
) -> str:
    """Takes an adapter's name out of serving and its weights out of memory (vLLM); the registry keeps it."""
    with audited("unload", body.lora_name):
        _unload(state, body.lora_name)
    return f"Success: LoRA adapter '{body.lora_name}' removed successfully."


@router.post(
    "/load_lora_adapter",
    response_model=SglangLoraUpdate,
    openapi_extra=describe_body(LoadSglangLoraAdapterRequest),
)
def load_sglang_lora_adapter(
    body: Annotated[LoadSglangLoraAdapterRequest, Depends(JsonBody(LoadSglangLoraAdapterRequest))],
    state: State,
    audited: Audited,
) -> Response:
    """Registers an adapter from an allowed folder under a name, and loads it (SGLang)."""
    try:
        with audited("load", body.lora_name):
            _load(state, body.lora_name, body.lora_path, pinned=body.pinned)
    except AdapterHubError as error:
        return _sglang_answer(state, error)
    return _sglang_answer(state)


@router.post(
    "/unload_lora_adapter",
    response_model=SglangLoraUpdate,
    openapi_extra=describe_body(UnloadLoraAdapterRequest),
)
def unload_sglang_lora_adapter(
    body: Annotated[UnloadLoraAdapterRequest, Depends(JsonBody(UnloadLoraAdapterRequest))],
    state: State,
    audited: Audited,
) -> Response:
    """Takes an adapter's name out of serving and its weights out of memory (SGLang); the registry keeps it."""
    try:
        with audited("unload", body.lora_name):
            _unload(state, body.lora_name)
    except AdapterHubError as error:
        return _sglang_answer(state, error)
    return _sglang_answer(state)


def _load(
    state: ServerState, name: str, path: str, *, load_inplace: bool = False, pinned: bool = False
) -> None:
    if not name or not path:
        raise InvalidRequestError("Both 'lora_name' and 'lora_path' must be provided.")
    folder = allowed_folder(path, state.config.adapter_folders)
    state.serving.load(name, folder, load_inplace=load_inplace, pinned=pinned)


def _unload(state: ServerState, name: str) -> None:
    if not name:
        raise InvalidRequestError("'lora_name' needs to be provided to unload a LoRA adapter.")
    state.serving.unload(name)


def _sglang_answer(state: ServerState, error: AdapterHubError | None = None) -> JSONResponse:
    served = {card.name: card.ref for card in state.hub.registry.list() if card.status == "ready"}
    answer = SglangLoraUpdate(
        success=error is None, error_message=str(error) if error else None, loaded_adapters=served
    )
    return JSONResponse(answer.model_dump(), status_code=400 if error else 200)
