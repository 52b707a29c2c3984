"""The LLM: one request for a whole batch, the adapter of every call, what answers tell, caching."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.errors import AdapterNotFoundError, InvalidRequestError
from adapterhub.langchain import AdapterHubLLM
from tests.langchain import helpers
from tests.langchain.helpers import config, idle


class Counting(EchoEngine):
    """Counts the requests of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def generate(self, requests: Any) -> Any:
        self.calls.append(len(requests))
        return super().generate(requests)


@pytest.fixture
def engine() -> Counting:
    return Counting()


@pytest.fixture
def llm(tiny_registry: Path, engine: Counting) -> AdapterHubLLM:
    return AdapterHubLLM(hub=AdapterHub(engine, AdapterRegistry(tiny_registry)), model="support", raw=True)


SELECTIONS = helpers.SELECTIONS | {
    "bind": (lambda m: m.bind(adapter="json", max_tokens=100), {}, None),
    "with_config": (lambda m: m.with_config(configurable={"adapter": "json"}), {}, None),
    "config of a chain": (lambda m: RunnableLambda(lambda x: x) | m, {}, config("json")),
    "router": (lambda m: m, {"model": "auto"}, None),
    "blend": (lambda m: m, {"model": "json:0.7+support:0.3"}, None),
    "base": (lambda m: m, {"model": "base"}, None),
}
EXPECTED_ADAPTERS = {"blend": "json@1:0.7+support@1:0.3", "base": "base"}
ASKED = "turn this sentence into json"


async def joined(chunks: Any) -> str:
    return "".join([chunk async for chunk in chunks])


async def one(awaitable: Any) -> str:
    return (await awaitable)[1]


async def events(asked: Any, options: Any, settings: Any) -> str:
    found = [event async for event in asked.astream_events(ASKED, settings, version="v2", **options)]
    ended = [event for event in found if event["event"] == "on_llm_end"][-1]["data"]["output"]
    return ended["generations"][0][0]["text"] if isinstance(ended, dict) else ended


ENTRIES = {
    "invoke": lambda asked, options, settings: asked.invoke(ASKED, settings, **options),
    "ainvoke": lambda asked, options, settings: asked.ainvoke(ASKED, settings, **options),
    "stream": lambda asked, options, settings: "".join(asked.stream(ASKED, settings, **options)),
    "astream": lambda asked, options, settings: joined(asked.astream(ASKED, settings, **options)),
    "batch": lambda asked, options, settings: asked.batch([ASKED] * 2, settings, **options)[1],
    "abatch": lambda asked, options, settings: one(asked.abatch([ASKED] * 2, settings, **options)),
    "batch_as_completed": lambda asked, options, settings: next(
        iter(asked.batch_as_completed([ASKED], settings, **options))
    )[1],
    "events": events,
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("selection", SELECTIONS)
async def test_the_selected_adapter_answers(llm: AdapterHubLLM, selection: str, entry: str):
    asked, options, settings = SELECTIONS[selection]
    ask = ENTRIES[entry]
    if entry in ("invoke", "stream", "batch", "batch_as_completed"):
        answer = await asyncio.to_thread(ask, asked(llm), options, settings)
    else:
        answer = await ask(asked(llm), options, settings)
    assert answer == f"[{EXPECTED_ADAPTERS.get(selection, 'json@1')}] {ASKED}"


class TestOneRequest:
    async def test_of_a_whole_batch(self, llm: AdapterHubLLM, engine: Counting):
        wanted = [f"[support@1] {number}" for number in range(20)]
        prompts = [str(number) for number in range(20)]
        assert llm.batch(prompts) == wanted
        assert await llm.abatch(prompts) == wanted
        assert [answers[0].text for answers in llm.generate(prompts).generations] == wanted
        assert [answers[0].text for answers in (await llm.agenerate(prompts)).generations] == wanted
        assert (PromptTemplate.from_template("{x}") | llm).batch([{"x": one} for one in prompts]) == wanted
        assert engine.calls == [20] * 5
        assert llm.batch([]) == []

    async def test_of_each_adapter_that_configs_name(self, llm: AdapterHubLLM, engine: Counting):
        names = ["json", "code", "support"] * 4
        prompts = [f"{number}" for number in range(12)]
        wanted = [f"[{name}@1] {prompt}" for name, prompt in zip(names, prompts, strict=True)]
        configs: list[Any] = [config(name) for name in names]
        assert await asyncio.to_thread(llm.batch, prompts, configs) == wanted
        assert await llm.abatch(prompts, configs) == wanted
        assert engine.calls == [4] * 6

    async def test_of_max_concurrency(self, llm: AdapterHubLLM, engine: Counting):
        configs: list[Any] = [{**config(name), "max_concurrency": 3} for name in ["json"] * 6 + ["code"]]
        wanted = ["[json@1] x"] * 6 + ["[code@1] x"]
        assert llm.batch(["x"] * 7, configs) == wanted
        assert await llm.abatch(["x"] * 7, configs) == wanted
        assert engine.calls == [3, 3, 1] * 2

    def test_exceptions_are_returned(self, llm: AdapterHubLLM):
        configs: list[Any] = [config("json"), config("nobody"), config("code")]
        first, second, third = llm.batch(["x"] * 3, configs, return_exceptions=True)
        assert (first, third) == ("[json@1] x", "[code@1] x")
        assert isinstance(second, AdapterNotFoundError)
        with pytest.raises(AdapterNotFoundError):
            llm.batch(["x"] * 3, configs)


class TestRefused:
    def test_unknown_adapters(self, llm: AdapterHubLLM):
        for ask in (
            lambda: AdapterHubLLM(hub=llm.hub, model="nobody"),
            lambda: llm.invoke("Hi", model="nobody"),
            lambda: llm.generate(["Hi"], adapter="json@9"),
            lambda: llm.bind(adapter="nobody"),
            lambda: list(llm.stream("Hi", config("nobody"))),
        ):
            with pytest.raises(AdapterNotFoundError):
                ask()

    def test_unknown_arguments(self, llm: AdapterHubLLM):
        for ask in (
            lambda: llm.invoke("Hi", temprature=1),
            lambda: list(llm.stream("Hi", temprature=1)),
        ):
            with pytest.raises(InvalidRequestError, match="temprature"):
                ask()
        for fields in ({"adaptor": "json"}, {"options": {"temprature": 1}}, {"options": {"max_tokens": 1}}):
            with pytest.raises(ValidationError, match=r"adaptor|temprature|max_tokens"):
                AdapterHubLLM(hub=llm.hub, **fields)


class TestAnswers:
    def test_generation_info(self, llm: AdapterHubLLM):
        result = llm.generate(["ab", "cde"], max_tokens=4, adapter="json")
        assert [answers[0].generation_info for answers in result.generations] == [
            {
                "model_name": "json",
                "model_provider": "adapterhub",
                "requested": "json",
                "adapter": "json",
                "adapter_version": 1,
                "base_model": "echo",
                "finish_reason": "length",
                "usage_metadata": {"input_tokens": size, "output_tokens": 4, "total_tokens": size + 4},
            }
            for size in (2, 3)
        ]
        usage = {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}
        assert result.llm_output == {"token_usage": usage, "model_name": "json"}

    def test_the_route(self, llm: AdapterHubLLM):
        result = llm.generate([ASKED, "write a python function"], model="auto")
        metadata = [answers[0].generation_info for answers in result.generations]
        assert [one["model_name"] for one in metadata] == ["json", "code"]
        assert [one["route"]["adapter"] for one in metadata] == ["json", "code"]
        assert result.llm_output["model_name"] == "auto"

    async def test_only_the_last_chunk_has_generation_info(self, llm: AdapterHubLLM):
        class Seen(BaseCallbackHandler):
            def __init__(self) -> None:
                self.tokens: list[str] = []
                self.metadata: list[Any] = []

            def on_llm_new_token(self, token: str, **_: Any) -> None:
                self.tokens.append(token)

            def on_llm_end(self, response: Any, **_: Any) -> None:
                self.metadata.append(response.generations[0][0].generation_info)

        seen = Seen()
        text = "".join(llm.stream("ab", {"callbacks": [seen], **config("json")}))
        assert "".join(seen.tokens) == text == "[json@1] ab"
        assert await joined(llm.astream("ab", {"callbacks": [seen], **config("json")})) == text
        wanted = llm.with_adapter("json").generate(["ab"]).generations[0][0].generation_info
        assert seen.metadata == [wanted, wanted]
        assert len(seen.tokens) == 2 * len(text)

    def test_several_for_a_prompt(self, llm: AdapterHubLLM):
        several = AdapterHubLLM(hub=llm.hub, options={"n": 2})
        assert len(several.generate(["a"]).generations[0]) == 2
        assert len(llm.generate(["a"], n=3).generations[0]) == 3

    def test_stop_of_a_call_wins_over_that_of_the_model(self, llm: AdapterHubLLM):
        stopped = AdapterHubLLM(hub=llm.hub, stop=["two"], raw=True)
        assert stopped.invoke("one two three") == "[base] one "
        assert stopped.invoke("one two three", stop=["three"]) == "[base] one two "
        assert "".join(stopped.stream("one two three", stop=["one"])) == "[base] "

    def test_the_chat_template_of_the_prompt(self, llm: AdapterHubLLM):
        assert "### Instruction" in AdapterHubLLM(hub=llm.hub).invoke("Hi")
        assert llm.invoke("Hi") == "[support@1] Hi"

    def test_tokens_and_tracing(self, llm: AdapterHubLLM):
        assert llm.get_num_tokens("abc") == 3
        metadata = llm._get_ls_params(model="json", temperature=0.5, stop=["x"], max_tokens=7)
        assert metadata == {
            "ls_provider": "adapterhub",
            "ls_model_type": "llm",
            "ls_model_name": "json",
            "ls_temperature": 0.5,
            "ls_max_tokens": 7,
            "ls_stop": ["x"],
        }


class TestCache:
    @pytest.fixture
    def cached(self, llm: AdapterHubLLM) -> AdapterHubLLM:
        return AdapterHubLLM(hub=llm.hub, model="json", raw=True, cache=InMemoryCache())

    def test_a_cached_answer_is_of_one_adapter(self, cached: AdapterHubLLM, engine: Counting):
        for same in (
            lambda: cached.invoke("x"),
            lambda: cached.invoke("x", adapter="json"),
            lambda: cached.with_adapter("code").invoke("x", config("json")),
        ):
            assert same() == "[json@1] x"
        assert engine.calls == [1]
        assert cached.invoke("x", adapter="code") == "[code@1] x"
        assert cached.invoke("x", config("support")) == "[support@1] x"
        configs: list[Any] = [config("json"), config("code"), config("base")]
        assert cached.batch(["x"] * 3, configs) == ["[json@1] x", "[code@1] x", "[base] x"]
        assert len(cached.cache._cache) == 4

    async def test_and_of_its_sampling_parameters(self, cached: AdapterHubLLM):
        assert cached.invoke("x") == "[json@1] x"
        assert cached.invoke("x", max_tokens=3) == "[js"
        assert cached.invoke("x", stop=["@"]) == "[json"
        assert await cached.ainvoke("x", max_tokens=4) == "[jso"
        assert len(cached.generate(["x"], n=2).generations[0]) == 2
        assert AdapterHubLLM(hub=cached.hub, model="json", cache=cached.cache).invoke("x") != "[json@1] x"

    def test_not_for_another_version(self, tmp_path: Path, tiny_base: Path, tiny_adapters: dict[str, Path]):
        registry = AdapterRegistry(tmp_path)
        registry.register("json", tiny_adapters["json"], base=tiny_base)
        llm = AdapterHubLLM(hub=AdapterHub(EchoEngine(), registry), model="json", cache=InMemoryCache())
        assert "[json@1]" in llm.invoke("Hi")
        registry.register("json", tiny_adapters["code"], base=tiny_base)
        assert "[json@2]" in llm.invoke("Hi")


class TestWithAModel:
    """What needs an engine that computes."""

    async def test_cancelling_a_task_aborts_all_requests(self, live_hub: AdapterHub):
        llm = AdapterHubLLM(hub=live_hub, max_tokens=2000, options={"ignore_eos": True})
        before = live_hub.stats().tokens
        task = asyncio.create_task(llm.abatch(["a", "b", "c"]))
        while live_hub.stats().tokens == before:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(live_hub)
        assert live_hub.stats().tokens - before < 3000

    async def test_closing_a_stream_aborts_the_request(self, live_hub: AdapterHub):
        llm = AdapterHubLLM(hub=live_hub, max_tokens=2000, options={"ignore_eos": True})
        before = live_hub.stats().tokens
        parts = llm.stream("a")
        next(parts)
        parts.close()
        await idle(live_hub)
        later = llm.astream("a")
        await anext(later)
        await later.aclose()
        await idle(live_hub)
        assert live_hub.stats().tokens - before < 1000
