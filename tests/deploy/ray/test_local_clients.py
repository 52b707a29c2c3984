"""Whom an application without keys answers, without Ray."""

import pytest
from starlette.types import Receive, Scope, Send

from adapterhub.deploy.ray.local_clients import LocalClientsMiddleware
from tests.server.asgi_client import Client


async def fine(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"fine"})


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1"])
async def test_programs_of_this_machine_are_answered(address: str):
    client = Client()
    client.scope["client"] = (address, 1)
    await client.ask(LocalClientsMiddleware(fine))
    assert client.body == b"fine"


@pytest.mark.parametrize("client_of", [("192.0.2.7", 1), ("2001:db8::7", 1), None])
async def test_others_are_refused(client_of: tuple[str, int] | None):
    client = Client()
    client.scope["client"] = client_of
    await client.ask(LocalClientsMiddleware(fine))
    assert client.answers[0]["status"] == 403
    assert b"api_key_file" in client.body
