"""What vLLM's HTTP interface does, asked of the fake and, where there is one, of a real vLLM: the fake stays honest."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub.base import DEMO_BASE, demo_base_folder
from adapterhub.errors import AdapterIncompatibleError, ConfigError, InvalidRequestError, RequestTooLongError
from adapterhub.vllm.chunks import ServedToken, tokens_of
from adapterhub.vllm.client import VLLMClient
from adapterhub.vllm.unavailable import AdapterNotLoadedError
from tests.fake_vllm import FakeVllm, serving
from tests.vllm.real import MAX_LORA_RANK, MAX_MODEL_LEN, real_vllm

JSON = Path(__file__).parents[2] / "adapters" / "json" / "1"


@pytest.fixture(
    scope="module", params=["fake", pytest.param("real", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "real":
        with real_vllm(tmp_path_factory.mktemp("vllm") / "log") as url:
            yield url
        return
    from adapterhub.base.loading import load_tokenizer

    tokenizer = load_tokenizer(DEMO_BASE)
    fake = FakeVllm(
        base=DEMO_BASE,
        root=str(demo_base_folder()),
        max_model_len=MAX_MODEL_LEN,
        max_lora_rank=MAX_LORA_RANK,
        tokenizer=tokenizer,
        end_token_id=tokenizer.eos_token_id,
        token_seconds=0.005,
    )
    with serving(fake) as (url,):
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[VLLMClient]:
    client = VLLMClient(url)
    for name in (await client.models()).adapters:
        await client.unload(name)
    yield client
    await client.aclose()


def copy(folder: Path, **config: Any) -> Path:
    """A copy of a shipped adapter with another config."""
    shutil.copytree(JSON, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def body(model: str = DEMO_BASE, **fields: Any) -> dict[str, Any]:
    settings = {"prompt": [5, 6, 7, 8], "stream": True, "return_token_ids": True, "max_tokens": 5}
    return {"model": model, "temperature": 0.0} | settings | fields


async def tokens(client: VLLMClient, logprobs: int | None = None, **fields: Any) -> list[ServedToken]:
    asked = {} if logprobs is None else {"logprobs": logprobs, "return_tokens_as_token_ids": True}
    frames = client.complete(body(**fields, **asked))
    return [token async for frame in frames for token in tokens_of(frame, logprobs)]


async def test_models(client: VLLMClient):
    models = await client.models()
    assert (models.base, models.max_model_len, models.adapters) == (DEMO_BASE, MAX_MODEL_LEN, {})
    assert models.root == str(demo_base_folder())


async def test_health_and_start_time(client: VLLMClient):
    assert await client.is_healthy()
    started = await client.start_time()
    assert started
    assert time.time() - 3600 < started <= time.time()
    assert await client.start_time() == started


async def test_an_adapter_is_loaded_listed_and_unloaded(client: VLLMClient):
    await client.load("json--v1-abcdef12", JSON)
    assert (await client.models()).adapters == {"json--v1-abcdef12": str(JSON)}
    assert await tokens(client, model="json--v1-abcdef12")
    await client.unload("json--v1-abcdef12")
    assert (await client.models()).adapters == {}
    with pytest.raises(AdapterNotLoadedError):
        await tokens(client, model="json--v1-abcdef12")


async def test_loading_twice_and_unloading_what_is_not_there(client: VLLMClient):
    await client.load("json", JSON)
    await client.load("json", JSON)
    await client.unload("nobody")
    assert list((await client.models()).adapters) == ["json"]


async def test_the_status_of_a_name_that_is_taken(client: VLLMClient, url: str):
    await client.load("json", JSON)
    async with httpx.AsyncClient() as http:
        for name in ("json", DEMO_BASE):
            fields = {"lora_name": name, "lora_path": str(JSON)}
            assert (await http.post(f"{url}/v1/load_lora_adapter", json=fields)).status_code == 400


async def test_a_folder_without_an_adapter(client: VLLMClient, tmp_path: Path):
    with pytest.raises(ConfigError, match="finds no adapter"):
        await client.load("json", tmp_path / "missing")


@pytest.mark.parametrize("config", [{"r": 2 * MAX_LORA_RANK}, {"use_dora": True}])
async def test_an_adapter_that_vllm_does_not_serve(
    client: VLLMClient, tmp_path: Path, config: dict[str, Any]
):
    with pytest.raises(AdapterIncompatibleError, match=r"rank|DoRA"):
        await client.load("odd", copy(tmp_path / "odd", **config))
    assert (await client.models()).adapters == {}


async def test_a_model_that_is_not_there(client: VLLMClient):
    with pytest.raises(AdapterNotLoadedError, match="does not exist"):
        await tokens(client, model="nobody")


async def test_token_ids_come_back_and_the_last_one_is_marked(client: VLLMClient):
    found = await tokens(client)
    assert len(found) == 5
    assert [token.is_last for token in found] == [False] * 4 + [True]
    assert not found[-1].stopped


async def test_a_stop_token_is_the_last_token(client: VLLMClient):
    free = await tokens(client)
    found = await tokens(client, stop_token_ids=[free[2].token_id])
    assert len(found) <= 3
    assert found[-1].token_id == free[2].token_id
    assert found[-1].stopped


@pytest.mark.parametrize("count", [0, 2])
async def test_log_probabilities_by_token_id(client: VLLMClient, count: int):
    for token in await tokens(client, count):
        assert token.logprob
        assert token.logprob.token_id == token.token_id
        assert token.logprob.logprob <= 0
        assert len(token.logprob.top) == count


async def test_every_sampling_parameter_is_taken(client: VLLMClient):
    settings = {"top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 7, "priority": -3}
    more = {"frequency_penalty": 0.5, "presence_penalty": 0.5, "logit_bias": {"9": -100.0}, "min_tokens": 2}
    words = {"bad_words": ["foo"], "ignore_eos": True, "temperature": 0.7}
    assert len(await tokens(client, **settings, **more, **words)) == 5


async def test_what_does_not_fit_the_context(client: VLLMClient):
    found = await tokens(client, prompt=[5] * (MAX_MODEL_LEN - 3), ignore_eos=True)
    assert len(found) == 3
    assert not found[-1].stopped
    with pytest.raises(RequestTooLongError, match="context length"):
        await tokens(client, prompt=[5] * (MAX_MODEL_LEN + 1))


async def test_at_most_four_stop_strings(client: VLLMClient):
    with pytest.raises(InvalidRequestError):
        await tokens(client, stop=["a", "b", "c", "d", "e"])


async def test_closing_a_stream_ends_it_there(client: VLLMClient, url: str):
    async with aclosing(client.complete(body(max_tokens=500, ignore_eos=True))) as frames:
        await anext(frames)
    async with httpx.AsyncClient() as http:
        deadline = time.monotonic() + 5
        while await _running(http, url):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def _running(http: httpx.AsyncClient, url: str) -> float:
    lines = (await http.get(f"{url}/metrics")).text.splitlines()
    (figure,) = [line.split()[-1] for line in lines if line.startswith("vllm:num_requests_running{")]
    return float(figure)
