"""One server: what it has, loading and unloading, completions as a stream, and what becomes of its failures."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import (
    AdapterIncompatibleError,
    ConfigError,
    EngineError,
    InvalidRequestError,
    RequestTooLongError,
)
from adapterhub.vllm.client import ServedModels, Timeouts, VLLMClient
from adapterhub.vllm.unavailable import AdapterNotLoadedError, ReplicaUnavailableError
from tests.fake_vllm import FakeProcess, FakeServer, FakeVllm
from tests.waiting import until


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    with FakeServer(FakeVllm()) as server:
        yield server


@pytest.fixture
async def client(fake: FakeServer) -> AsyncIterator[VLLMClient]:
    client = VLLMClient(fake.url)
    yield client
    await client.aclose()


def adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8} | config))
    return folder


def body(prompt: str = "hi", model: str = "base", **fields: Any) -> dict[str, Any]:
    prompt_ids = list(map(ord, prompt))
    return {
        "model": model,
        "prompt": prompt_ids,
        "stream": True,
        "return_token_ids": True,
        "max_tokens": 99,
    } | fields


async def text(client: VLLMClient, **fields: Any) -> str:
    return "".join([frame["choices"][0]["text"] async for frame in client.complete(body(**fields))])


async def _read_all(frames: AsyncIterator[Any]) -> None:
    async for _ in frames:
        pass


async def test_models(client: VLLMClient):
    assert await client.models() == ServedModels("base", "/models/echo", 8192, {})


async def test_an_adapter_is_loaded_answers_and_is_unloaded(client: VLLMClient, tmp_path: Path):
    folder = adapter(tmp_path / "json")
    await client.load("json--v1-abc", folder)
    assert (await client.models()).adapters == {"json--v1-abc": str(folder)}
    assert await text(client, model="json--v1-abc") == "[json--v1-abc] hi"
    await client.unload("json--v1-abc")
    assert (await client.models()).adapters == {}
    with pytest.raises(AdapterNotLoadedError):
        await text(client, model="json--v1-abc")


async def test_a_loaded_name_is_not_loaded_again(client: VLLMClient, fake: FakeServer, tmp_path: Path):
    folder = adapter(tmp_path / "json")
    await client.load("json", folder)
    await client.load("json", folder)
    assert fake.fake.loads["json"] == 1


async def test_unloading_what_is_not_loaded_is_no_error(client: VLLMClient):
    await client.unload("json")


async def test_a_rank_above_the_server_s_is_refused_with_its_reason(client: VLLMClient, tmp_path: Path):
    refused = pytest.raises(AdapterIncompatibleError, match="LoRA rank 64 is greater than max_lora_rank 16")
    with refused as caught:
        await client.load("big", adapter(tmp_path / "big", r=64))
    assert caught.value.hint
    assert "--max-lora-rank" in caught.value.hint
    assert "--rank N" in caught.value.hint


async def test_a_failure_of_a_server_that_is_not_healthy_is_not_blamed_on_the_adapter(
    client: VLLMClient, fake: FakeServer, tmp_path: Path
):
    fake.fake.unavailable = True
    with pytest.raises(EngineError) as caught:
        await client.load("big", adapter(tmp_path / "big", r=64))
    assert not isinstance(caught.value, AdapterIncompatibleError)


async def test_a_folder_that_the_server_does_not_see(client: VLLMClient, tmp_path: Path):
    with pytest.raises(ConfigError, match="finds no adapter"):
        await client.load("json", tmp_path / "missing")


async def test_a_server_that_does_not_load_while_it_runs(
    client: VLLMClient, fake: FakeServer, tmp_path: Path
):
    fake.fake.runtime_lora_updating = False
    with pytest.raises(ConfigError, match="does not load") as caught:
        await client.load("json", adapter(tmp_path / "json"))
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in (caught.value.hint or "")
    with pytest.raises(ConfigError):
        await client.unload("json")


async def test_health_and_start_time(client: VLLMClient, fake: FakeServer):
    assert await client.is_healthy()
    before = await client.start_time()
    fake.fake.restart()
    after = await client.start_time()
    assert before
    assert after
    assert after > before
    fake.fake.unavailable = True
    assert not await client.is_healthy()


async def test_a_completion_is_streamed_token_by_token(client: VLLMClient):
    frames = [frame["choices"][0] async for frame in client.complete(body())]
    assert [frame["token_ids"] for frame in frames] == [[ord(c)] for c in "[base] hi"]
    assert [frame["finish_reason"] for frame in frames] == [None] * 8 + ["stop"]


async def test_closing_the_stream_ends_the_answer_in_the_server(client: VLLMClient, fake: FakeServer):
    fake.fake.token_seconds = 0.02
    async with aclosing(client.complete(body("x" * 500, max_tokens=500))) as frames:
        await anext(frames)
    await until(lambda: fake.fake.aborted)
    assert fake.fake.in_flight == 0


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model": "nobody"}, AdapterNotLoadedError, "does not exist"),
        ({"prompt": "x" * 8193}, RequestTooLongError, "maximum context length"),
        ({"stop": ["a", "b", "c", "d", "e"]}, InvalidRequestError, "at most 4"),
    ],
)
async def test_refusals(client: VLLMClient, fields: dict[str, Any], error: type[EngineError], message: str):
    with pytest.raises(error, match=message):
        await text(client, **fields)


async def test_a_full_server_may_be_asked_again(client: VLLMClient, fake: FakeServer):
    fake.fake.unavailable = True
    with pytest.raises(ReplicaUnavailableError) as caught:
        await text(client)
    assert caught.value.retryable


async def test_a_connection_cut_in_mid_stream(client: VLLMClient, fake: FakeServer):
    fake.fake.cut_after = 3
    async with aclosing(client.complete(body())) as frames:
        received = [(await anext(frames))["choices"][0]["text"] for _ in range(3)]
        assert received == ["[", "b", "a"]
        with pytest.raises(ReplicaUnavailableError):
            await anext(frames)


async def test_an_error_in_mid_stream(client: VLLMClient, fake: FakeServer):
    fake.fake.fail_after = 3
    with pytest.raises(EngineError, match="The engine failed"):
        await text(client)


async def test_a_server_that_goes_away_and_comes_back(client: VLLMClient, fake: FakeServer):
    assert await text(client) == "[base] hi"
    fake.kill()
    with pytest.raises(ReplicaUnavailableError):
        await text(client)
    assert not await client.is_healthy()
    fake.start()
    assert await text(client) == "[base] hi"


async def test_a_killed_process_is_noticed_in_mid_stream_and_answers_again_once_it_is_back():
    with FakeProcess(token_seconds=0.05) as process:
        client = VLLMClient(process.url)
        async with aclosing(client.complete(body("x" * 99))) as frames:
            await anext(frames)
            process.kill()
            with pytest.raises(ReplicaUnavailableError):
                await _read_all(frames)
        process.start()
        assert await text(client) == "[base] hi"
        await client.aclose()


@pytest.mark.parametrize(
    ("knob", "timeouts"),
    [
        ("first_token_seconds", Timeouts(first_token=0.1)),
        ("token_seconds", Timeouts(next_token=0.1)),
    ],
)
async def test_time_outs_of_a_completion(fake: FakeServer, knob: str, timeouts: Timeouts):
    setattr(fake.fake, knob, 5)
    client = VLLMClient(fake.url, timeouts=timeouts)
    with pytest.raises(ReplicaUnavailableError, match=r"not answered for 0\.1 s"):
        await text(client)
    await client.aclose()


async def test_time_out_of_a_load(fake: FakeServer, tmp_path: Path):
    fake.fake.load_seconds = 5
    client = VLLMClient(fake.url, timeouts=Timeouts(load=0.1))
    with pytest.raises(ReplicaUnavailableError, match=r"not answered for 0\.1 s"):
        await client.load("json", adapter(tmp_path / "json"))
    await client.aclose()


async def test_streams_that_are_read_to_their_end_share_a_connection(client: VLLMClient, fake: FakeServer):
    for _ in range(3):
        assert await text(client) == "[base] hi"
    assert len(fake.fake.connections) == 1
    async with aclosing(client.complete(body())) as frames:
        await anext(frames)  # and is given up
    assert await text(client) == "[base] hi"
    assert len(fake.fake.connections) == 2


def streaming(*parts: bytes) -> FakeServer:
    """A server that answers everything by these parts of a body."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    return FakeServer(answer)  # type: ignore[arg-type]


async def test_frames_may_be_cut_anywhere():
    whole = b': ping\r\n\r\ndata: {"a": 1}\r\n\r\ndata: {"b": 2}\n\ndata: [DONE]\n\n'
    with streaming(*(bytes([byte]) for byte in whole)) as server:
        client = VLLMClient(server.url)
        assert [frame async for frame in client.complete(body())] == [{"a": 1}, {"b": 2}]
        await client.aclose()


async def test_a_line_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("adapterhub.vllm.client.MAX_BODY_BYTES", 100_000)
    with streaming(b"data: ", *[b"x" * 1000] * 200) as server:
        client = VLLMClient(server.url)
        with pytest.raises(EngineError, match="more than 100000 bytes"):
            await text(client)
        await client.aclose()


async def test_the_key_is_sent_and_never_told(fake: FakeServer):
    fake.fake.api_key = "secret-key"
    client = VLLMClient(fake.url, api_key="secret-key")
    assert await text(client) == "[base] hi"
    await client.aclose()
    other = VLLMClient(fake.url, api_key="wrong-key")
    with pytest.raises(EngineError, match="refuses the API key") as caught:
        await other.models()
    assert "wrong-key" not in str(caught.value)
    assert "ADAPTERHUB_UPSTREAM_API_KEY" in (caught.value.hint or "")
    await other.aclose()


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (200, b'{"data": []}'),
        (200, b"[]"),
        (200, b"process_start_time_seconds soon"),
        (404, b"Not Found"),
        (404, b'{"error": "no such path"}'),
    ],
)
async def test_what_is_no_vllm_server_is_told(status: int, content: bytes):
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": content})

    with FakeServer(answer) as server:  # type: ignore[arg-type]
        client = VLLMClient(server.url)
        with pytest.raises(EngineError, match="does not answer /v1/models as vLLM does") as caught:
            await client.models()
        assert "http://host:8000" in (caught.value.hint or "")
        assert await client.start_time() is None
        await client.aclose()


async def test_a_server_that_is_not_there(unused_url: str):
    client = VLLMClient(unused_url)
    with pytest.raises(ReplicaUnavailableError, match="cannot be reached"):
        await client.models()
    await client.aclose()


@pytest.fixture
def unused_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize(
    "url",
    [
        "host:8000",
        "ftp://host",
        "http://",
        "http://host?x=1",
        "http://user:pw@host",
        "http://host:port",
        "http://host:70000",
        "http://[::1",
    ],
)
def test_urls_that_are_refused(url: str):
    with pytest.raises(ConfigError) as caught:
        VLLMClient(url)
    assert "pw" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    "url", ["http://host:8000", "http://host:8000/", "http://host:8000/v1", "http://host:8000/v1/"]
)
async def test_a_url_may_end_in_v1(url: str):
    client = VLLMClient(url)
    assert client.url == "http://host:8000"
    await client.aclose()
