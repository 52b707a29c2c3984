"""A front over replicas in this process, without a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

pytest.importorskip("ray", reason="Ray is not installed: `make test-ray` installs it")
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.deploy.ray import ApplicationConfig
from adapterhub.deploy.ray.front import front_app
from adapterhub.deploy.ray.http_call import HttpCall
from adapterhub.server import create_app
from tests.server.asgi_client import GONE, Client, part

Answer = Callable[[HttpCall], AsyncIterator[list[Message]]]
ASK = {"model": "json", "prompt": "Hi"}


class Answers:
    """What a handle returns: an iterator that can be cancelled."""

    def __init__(self, answer: AsyncIterator[list[Message]]) -> None:
        self.answer = answer
        self.cancelled = False

    def __aiter__(self) -> AsyncIterator[list[Message]]:
        return self.answer

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A deployment's handle: what a front uses of it."""

    def __init__(self, *replicas: Answer) -> None:
        self.replicas = replicas
        self.calls: list[HttpCall] = []
        self.given: list[Answers] = []

    def options(self, *, stream: bool) -> Handle:
        assert stream
        return self

    @property
    def answer(self) -> Any:
        return self

    def remote(self, call: HttpCall) -> Answers:
        self.calls.append(call)
        self.given.append(Answers(self.replicas[0](call)))
        return self.given[-1]

    def broadcast(self, method: str, call: HttpCall) -> Handle:
        assert method == "metrics"
        self.calls.append(call)
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        assert return_exceptions

        async def metrics(name: str, replica: Answer) -> tuple[str, list[Message]]:
            return name, [message async for some in replica(self.calls[-1]) for message in some]

        asked: list[Awaitable[Any]] = [metrics(f"r{i}", one) for i, one in enumerate(self.replicas)]
        return await asyncio.gather(*asked, return_exceptions=True)


@pytest.fixture
def hubs() -> tuple[AdapterHub, AdapterHub]:
    """Two replicas' hubs, which repeat prompts, over the shipped adapters."""
    shipped = Path(__file__).parents[3] / "adapters"
    return AdapterHub(EchoEngine(), AdapterRegistry(shipped)), AdapterHub(
        EchoEngine(), AdapterRegistry(shipped)
    )


def replica(hub: AdapterHub, config: ApplicationConfig) -> Answer:
    app = create_app(hub, config.server)
    return lambda call: call.answers(app)


def client_of(handle: Handle, config: ApplicationConfig, address: str = "127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(front_app(handle, config), client=(address, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def failing(error: Exception, after: int = 0) -> Answer:
    async def answer(call: HttpCall) -> AsyncIterator[list[Message]]:
        for _ in range(after):
            yield [{"type": "http.response.start", "status": 200, "headers": []}]
        raise error

    return answer


async def test_the_replicas_answer_is_the_answer(hubs: tuple[AdapterHub, AdapterHub]):
    config = ApplicationConfig(engine="echo")
    handle = Handle(replica(hubs[0], config))
    async with client_of(handle, config) as client:
        answer = await client.post("/v1/completions", json=ASK)
    assert answer.json()["choices"][0]["text"].startswith("[json@1]")
    assert answer.headers["x-adapterhub-adapter"] == "json"
    assert "x-request-id" not in answer.headers  # Ray's proxy adds it
    assert handle.calls[0].adapter == "json"


async def test_the_base_by_any_name_has_no_affinity(hubs: tuple[AdapterHub, AdapterHub]):
    config = ApplicationConfig(engine="echo", base="org/model", base_model="ours")  # type: ignore[call-arg]
    handle = Handle(replica(hubs[0], config))
    async with client_of(handle, config) as client:
        for model in ("base", "auto", "org/model", "model", "ours"):
            await client.post("/v1/completions", json={**ASK, "model": model})
    assert [call.adapter for call in handle.calls] == [None] * 5


async def test_keys_are_checked_by_the_replica(hubs: tuple[AdapterHub, AdapterHub], tmp_path: Path):
    keys = tmp_path / "keys.txt"
    keys.write_text("team key-of-the-team-0123\n")
    keys.chmod(0o600)
    config = ApplicationConfig(engine="echo", api_key_file=str(keys))  # type: ignore[call-arg]
    async with client_of(Handle(replica(hubs[0], config)), config, address="192.0.2.7") as client:
        assert (await client.post("/v1/completions", json=ASK)).status_code == 401
        assert (await client.get("/metrics")).status_code == 401
        headers = {"authorization": "Bearer key-of-the-team-0123"}
        assert (await client.post("/v1/completions", json=ASK, headers=headers)).status_code == 200


async def test_without_keys_other_machines_and_web_pages_are_refused(hubs: tuple[AdapterHub, AdapterHub]):
    config = ApplicationConfig(engine="echo")
    handle = Handle(replica(hubs[0], config))
    async with client_of(handle, config, address="192.0.2.7") as client:
        assert (await client.post("/v1/completions", json=ASK)).status_code == 403
    async with client_of(handle, config) as client:
        page = {"origin": "https://evil.example"}
        assert (await client.post("/v1/completions", json=ASK, headers=page)).status_code == 403
    assert handle.calls == []


async def test_insecure_answers_all(hubs: tuple[AdapterHub, AdapterHub]):
    config = ApplicationConfig(engine="echo", insecure=True)  # type: ignore[call-arg]
    async with client_of(Handle(replica(hubs[0], config)), config, address="192.0.2.7") as client:
        assert (await client.post("/v1/completions", json=ASK)).status_code == 200


async def test_a_body_above_the_bound_reaches_no_replica(hubs: tuple[AdapterHub, AdapterHub]):
    config = ApplicationConfig(engine="echo", max_body_bytes=100)  # type: ignore[call-arg]
    handle = Handle(replica(hubs[0], config))
    async with client_of(handle, config) as client:
        answer = await client.post("/v1/completions", json={**ASK, "prompt": "x" * 200})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert handle.calls == []


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(BackPressureError(9, 8), 429, "rate_limit_exceeded"), (ActorDiedError(), 503, "overloaded")],
)
async def test_what_ray_could_not_deliver_can_be_sent_again(error: Exception, status: int, code: str):
    config = ApplicationConfig(engine="echo")
    async with client_of(Handle(failing(error)), config) as client:
        answer = await client.post("/v1/completions", json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["retry-after"] == "1"


async def test_an_answer_that_has_begun_is_cut_off():
    config = ApplicationConfig(engine="echo")
    handle = Handle(failing(ActorDiedError(), after=1))
    async with client_of(handle, config) as client:
        with pytest.raises(ActorDiedError):  # the server closes the connection
            await client.post("/v1/completions", json=ASK)
    assert handle.given[0].cancelled


async def test_a_client_that_leaves_cancels_the_call():
    started = asyncio.Event()

    async def endless(call: HttpCall) -> AsyncIterator[list[Message]]:
        started.set()
        await asyncio.Event().wait()
        yield []

    handle = Handle(endless)
    async with client_of(handle, ApplicationConfig(engine="echo")) as client:
        asking = asyncio.create_task(client.post("/v1/completions", json=ASK))
        await started.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert handle.given[0].cancelled


async def test_a_client_that_leaves_within_its_body_reaches_no_replica():
    handle, client = Handle(), Client(part(b'{"model": ', more=True), GONE, path="/v1/completions")
    client.scope["headers"] = [(b"host", b"127.0.0.1")]
    await client.ask(front_app(handle, ApplicationConfig(engine="echo")))
    assert (handle.calls, client.answers) == ([], [])


async def test_metrics_are_those_of_all_replicas(hubs: tuple[AdapterHub, AdapterHub]):
    config = ApplicationConfig(engine="echo")
    hubs[1].generate("Hello", "json", max_tokens=3)
    handle = Handle(*(replica(hub, config) for hub in hubs))
    async with client_of(handle, config) as client:
        lines = (await client.get("/metrics")).text.splitlines()
    generated = [line for line in lines if line.startswith("vllm:generation_tokens_total")]
    assert [line.rpartition(" ")[2] for line in generated] == ["0.0", "3.0"]
    assert ['replica="r0"' in generated[0], 'replica="r1"' in generated[1]] == [True, True]


async def test_metrics_leave_out_a_replica_that_is_gone(hubs: tuple[AdapterHub, AdapterHub]):
    config = ApplicationConfig(engine="echo")
    handle = Handle(failing(ActorDiedError()), replica(hubs[0], config))
    async with client_of(handle, config) as client:
        text = (await client.get("/metrics")).text
    assert 'replica="r1"' in text
    assert 'replica="r0"' not in text


async def test_without_any_replica_metrics_can_be_asked_again():
    config = ApplicationConfig(engine="echo")
    async with client_of(Handle(failing(ActorDiedError())), config) as client:
        assert (await client.get("/metrics")).status_code == 503
