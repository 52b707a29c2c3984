"""What routes of admins get besides the state: the audit log."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

from fastapi import Depends, Request

from adapterhub.server.state import State


async def audited(request: Request, state: State) -> Callable[[str, str], AbstractContextManager[None]]:
    """Makes a context manager of an action's name and the adapter's reference, which writes to the audit log."""

    def action(name: str, adapter: str) -> AbstractContextManager[None]:
        request_id = getattr(request.state, "request_id", "")
        return state.audit.action(name, adapter=adapter, key=state.caller.name, request_id=request_id)

    return action


Audited = Annotated[Callable[[str, str], AbstractContextManager[None]], Depends(audited)]
