"""The registry over HTTP: whoever may use an adapter may read about it; admins change it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from adapterhub.registry import AdapterCard, Ref
from adapterhub.server.access.caller import Caller, no_model
from adapterhub.server.adapters.allowed_folders import allowed_folder
from adapterhub.server.adapters.uploads import receive_upload, unpack, upload_file, upload_folder
from adapterhub.server.adapters.views import Placement
from adapterhub.server.protocol.body import JsonBody, describe_body
from adapterhub.server.protocol.registry import (
    AdapterList,
    AdapterSummary,
    AddAdapterRequest,
    AliasList,
    AliasRequest,
    AliasState,
    PinRequest,
    ShadowRequest,
    UpdateAdapterRequest,
)
from adapterhub.server.routes.dependencies import Audited
from adapterhub.server.state import ServerState, State

_PREFIX = "/v1/adapterhub/adapters"
router = APIRouter(prefix=_PREFIX, tags=["registry"])
_ZIP = {"requestBody": {"required": True, "content": {"application/zip": {"schema": {"type": "string"}}}}}


def takes_uploads(path: str) -> bool:
    """Whether bodies to this path are archives of adapters."""
    return path.startswith(f"{_PREFIX}/") and path.endswith("/upload")


@router.get("")
def list_adapters(state: State) -> AdapterList:
    """Lists the adapters, the version that each bare name means; disabled ones for admins only."""
    cards = [card for card in state.hub.registry.list() if _is_visible(card, state.caller)]
    return _listed(state, cards)


@router.get("/{ref}")
def show_adapter(ref: str, state: State) -> AdapterSummary:
    """Shows one version: `name`, `name@3` or `name@alias`; admins get the whole card too."""
    return _shown(state, _visible_card(state, ref))


@router.get("/{name}/versions")
def list_versions(name: str, state: State) -> AdapterList:
    """Lists the versions of a name, oldest first; disabled ones for admins only."""
    _visible_card(state, name)
    return _listed(
        state, [card for card in state.hub.registry.versions(name) if _is_visible(card, state.caller)]
    )


@router.post("", status_code=201, openapi_extra=describe_body(AddAdapterRequest))
def add_adapter(
    body: Annotated[AddAdapterRequest, Depends(JsonBody(AddAdapterRequest))], state: State, audited: Audited
) -> AdapterSummary:
    """Checks a folder and registers it as the next version of a name."""
    with audited("add", body.name):
        folder = allowed_folder(body.path, state.config.adapter_folders)
        card = state.serving.register(body.name, folder, force=body.force, fields=body.card)
    return _shown(state, card)


@router.post("/{name}/upload", status_code=201, openapi_extra=_ZIP)
async def upload_adapter(name: str, request: Request, state: State, audited: Audited) -> AdapterSummary:
    """Checks a zip archive of an adapter's files and registers it as the next version of a name."""
    root, limit = state.hub.registry.root, state.config.max_upload_bytes

    def register() -> AdapterSummary:
        with audited("upload", name), upload_folder(root) as folder:
            unpack(archive, folder, limit)
            return _shown(state, state.serving.register(name, folder))

    with await run_in_threadpool(upload_file, root) as archive:
        await receive_upload(request.stream(), archive)
        return await run_in_threadpool(register)


@router.patch("/{ref}", openapi_extra=describe_body(UpdateAdapterRequest))
def update_adapter(
    ref: str,
    body: Annotated[UpdateAdapterRequest, Depends(JsonBody(UpdateAdapterRequest))],
    state: State,
    audited: Audited,
) -> AdapterSummary:
    """Sets fields of a version's card, such as `description`, `routing` or `status` (`ready`, `disabled`)."""
    with audited("update", ref):
        card = state.serving.update(ref, body.root)
    return _shown(state, card)


@router.delete("/{ref}", status_code=204, response_class=Response)
def remove_adapter(
    ref: str,
    state: State,
    audited: Audited,
    force: Annotated[bool, Query(description="Remove also what an alias points to.")] = False,
) -> None:
    """Removes a version, or with a bare name all of them, from the registry and from memory."""
    with audited("remove", ref):
        state.hub.delete_adapter(ref, force=force)


@router.get("/{name}/aliases")
def list_aliases(name: str, state: State) -> AliasList:
    """Lists the aliases of a name: which versions answer their requests, and which gets copies."""
    _visible_card(state, name)
    aliases = state.hub.registry.aliases(name)
    return AliasList(data=[AliasState.of(f"{name}@{alias}", meaning) for alias, meaning in aliases.items()])


@router.put("/{name}/aliases/{alias}", openapi_extra=describe_body(AliasRequest))
def set_alias(
    name: str,
    alias: str,
    body: Annotated[AliasRequest, Depends(JsonBody(AliasRequest))],
    state: State,
    audited: Audited,
) -> AdapterSummary:
    """Points an alias at a version, so that `name@alias` means it, or lets several share its requests (a canary)."""
    with audited("alias", f"{name}@{alias}"):
        state.hub.registry.alias(name, alias, body.weights or body.version)
    return _shown(state, state.hub.registry.get(f"{name}@{alias}"))


@router.delete("/{name}/aliases/{alias}", status_code=204, response_class=Response)
def remove_alias(name: str, alias: str, state: State, audited: Audited) -> None:
    """Removes an alias."""
    with audited("remove alias", f"{name}@{alias}"):
        state.hub.registry.alias(name, alias, None)


@router.put("/{name}/aliases/{alias}/shadow", openapi_extra=describe_body(ShadowRequest))
def set_shadow(
    name: str,
    alias: str,
    body: Annotated[ShadowRequest, Depends(JsonBody(ShadowRequest))],
    state: State,
    audited: Audited,
) -> AliasState:
    """Sends copies of a share of the alias' requests to another version, whose answers nobody sees."""
    with audited("shadow", f"{name}@{alias}"):
        state.hub.registry.shadow(name, alias, body.version, body.percent)
    return AliasState.of(f"{name}@{alias}", state.hub.registry.aliases(name)[alias])


@router.delete("/{name}/aliases/{alias}/shadow", status_code=204, response_class=Response)
def remove_shadow(name: str, alias: str, state: State, audited: Audited) -> None:
    """Sends no more copies of an alias' requests."""
    with audited("remove shadow", f"{name}@{alias}"):
        state.hub.registry.shadow(name, alias, None)


@router.post("/{ref}/pin", openapi_extra=describe_body(PinRequest, required=False))
def pin_adapter(
    ref: str,
    body: Annotated[PinRequest, Depends(JsonBody(PinRequest))],
    state: State,
    audited: Audited,
) -> AdapterSummary:
    """Keeps an adapter in its LoRA slot, or no longer."""
    with audited("pin" if body.pinned else "unpin", ref):
        card = state.serving.pin(ref, body.pinned)
    return _shown(state, card)


@router.post("/{ref}/preload")
def preload_adapter(ref: str, state: State, audited: Audited) -> AdapterSummary:
    """Loads an adapter ahead of requests: into host memory, and into a LoRA slot if one is free."""
    with audited("preload", ref):
        card = state.serving.preload(ref)
    return _shown(state, card)


@router.post("/{ref}/evict")
def evict_adapter(ref: str, state: State, audited: Audited) -> AdapterSummary:
    """Takes an adapter out of memory once no request needs it; the next request loads it again."""
    with audited("evict", ref):
        card = state.serving.evict(ref)
    return _shown(state, card)


def _is_visible(card: AdapterCard, caller: Caller) -> bool:
    return caller.is_admin or (card.status == "ready" and caller.may_use(card.name))


def _visible_card(state: ServerState, ref: str) -> AdapterCard:
    if not state.caller.may_use(Ref.parse(ref).name):
        raise no_model(ref)
    card = state.hub.registry.get(ref)
    if not _is_visible(card, state.caller):
        raise no_model(ref)
    return card


def _listed(state: ServerState, cards: list[AdapterCard]) -> AdapterList:
    placement = Placement(state.hub.stats(), state.caller)
    return AdapterList(data=[placement.summary(card) for card in cards])


def _shown(state: ServerState, card: AdapterCard) -> AdapterSummary:
    return Placement(state.hub.stats(), state.caller).summary(card, with_card=state.caller.is_admin)
