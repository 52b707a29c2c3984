"""The chat model: every entry to choose an adapter at every entry in, and what its answers tell."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.errors import AdapterNotFoundError, DeadlineError, InvalidRequestError
from adapterhub.langchain import ChatAdapterHub
from adapterhub.langchain.message_conversion import convert_messages
from adapterhub.tool_calling.call_messages import inline_tool_calls
from tests.langchain import helpers
from tests.langchain.helpers import config


@pytest.fixture(scope="module")
def hub(tiny_registry: Path) -> AdapterHub:
    return AdapterHub(EchoEngine(), AdapterRegistry(tiny_registry))


@pytest.fixture
def model(hub: AdapterHub) -> ChatAdapterHub:
    return ChatAdapterHub(hub=hub, model="support")


SELECTIONS = helpers.SELECTIONS | {
    "bind": (lambda m: m.bind(adapter="json"), {}, None),
    "bind, then tools": (lambda m: m.bind(adapter="json").bind_tools([], temperature=0), {}, None),
    "bind_tools": (lambda m: m.bind_tools([], adapter="json"), {}, None),
    "tools, then bind": (lambda m: m.bind_tools([]).bind(adapter="json"), {}, None),
    "tools and config": (lambda m: m.bind_tools([]), {}, config("json")),
    "with_config": (lambda m: m.with_config(configurable={"adapter": "json"}), {}, None),
    "config of a chain": (lambda m: RunnableLambda(lambda x: x) | m, {}, config("json")),
    "router": (lambda m: m, {"model": "auto"}, None),
    "blend": (lambda m: m, {"model": "json:0.7+support:0.3"}, None),
    "base": (lambda m: m, {"model": "base"}, None),
}
EXPECTED_ADAPTERS = {"router": "json", "blend": "json@1:0.7+support@1:0.3", "base": "base"}
ASKED = "turn this sentence into json"


async def joined(chunks: Any) -> Any:
    return sum([chunk async for chunk in chunks], start=AIMessageChunk(content=""))


async def events(asked: Any, options: Any, settings: Any) -> Any:
    found = [event async for event in asked.astream_events(ASKED, settings, version="v2", **options)]
    return [event["data"]["output"] for event in found if event["event"] == "on_chat_model_end"][-1]


async def events_v3(asked: Any, options: Any, settings: Any) -> Any:
    return await (await asked.astream_events(ASKED, settings, version="v3", **options))


ENTRIES = {
    "invoke": lambda asked, options, settings: asked.invoke(ASKED, settings, **options),
    "ainvoke": lambda asked, options, settings: asked.ainvoke(ASKED, settings, **options),
    "stream": lambda asked, options, settings: sum(
        list(asked.stream(ASKED, settings, **options)), start=AIMessageChunk(content="")
    ),
    "astream": lambda asked, options, settings: joined(asked.astream(ASKED, settings, **options)),
    "batch": lambda asked, options, settings: asked.batch([ASKED, ASKED], settings, **options)[1],
    "abatch": lambda asked, options, settings: asked.abatch([ASKED, ASKED], settings, **options),
    "batch_as_completed": lambda asked, options, settings: next(
        iter(asked.batch_as_completed([ASKED], settings, **options))
    )[1],
    "events": events,
    "events v3": events_v3,
}


# In langchain-core the third version of events is for chat models and what `bind` makes of them.
PAIRS = [
    (selection, entry)
    for selection in SELECTIONS
    for entry in ENTRIES
    if entry != "events v3" or selection not in ("with_config", "config of a chain")
]


@pytest.mark.parametrize(("selection", "entry"), PAIRS)
@pytest.mark.filterwarnings("ignore:.*beta")
async def test_the_selected_adapter_answers(model: ChatAdapterHub, selection: str, entry: str):
    asked, options, settings = SELECTIONS[selection]
    if entry in ("invoke", "stream", "batch", "batch_as_completed"):
        answer = await asyncio.to_thread(ENTRIES[entry], asked(model), options, settings)
    else:
        answer = await ENTRIES[entry](asked(model), options, settings)
    answer = answer[-1] if isinstance(answer, list) else answer
    wanted = EXPECTED_ADAPTERS.get(selection, "json")
    assert answer.response_metadata["model_name"] == wanted
    assert f"[{wanted if selection == 'blend' or wanted == 'base' else 'json@1'}] " in answer.text


class TestUnknownAdapters:
    def test_in_the_constructor(self, hub: AdapterHub):
        with pytest.raises(AdapterNotFoundError):
            ChatAdapterHub(hub=hub, model="nobody")

    @pytest.mark.parametrize(
        "options", [{"model": "nobody"}, {"adapter": "json@9"}, {"model": "json+nobody"}]
    )
    def test_in_a_call(self, model: ChatAdapterHub, options: dict[str, str]):
        with pytest.raises(AdapterNotFoundError):
            model.invoke("Hi", **options)

    async def test_in_a_config(self, model: ChatAdapterHub):
        with pytest.raises(AdapterNotFoundError):
            await model.ainvoke("Hi", config("nobody"))
        with pytest.raises(AdapterNotFoundError):
            model.bind_tools([], adapter="nobody")

    def test_contradicting_and_invalid_names(self, model: ChatAdapterHub):
        with pytest.raises(InvalidRequestError, match="mean the same"):
            model.invoke("Hi", model="json", adapter="code")
        with pytest.raises(InvalidRequestError, match="non-empty string"):
            model.invoke("Hi", config(7))  # type: ignore[arg-type]

    def test_an_unknown_field(self, hub: AdapterHub):
        with pytest.raises(ValidationError, match="adaptor"):
            ChatAdapterHub(hub=hub, adaptor="json")

    def test_an_unknown_argument(self, model: ChatAdapterHub):
        with pytest.raises(InvalidRequestError, match="temprature"):
            model.invoke("Hi", temprature=1)


class TestAnswers:
    def test_response_metadata(self, model: ChatAdapterHub):
        answer = model.invoke(ASKED, adapter="auto", max_tokens=5)
        metadata = answer.response_metadata
        route = metadata.pop("route")
        assert metadata == {
            "model_name": "json",
            "model_provider": "adapterhub",
            "requested": "auto",
            "adapter": "json",
            "adapter_version": 1,
            "base_model": "echo",
            "finish_reason": "length",
        }
        assert route["adapter"] == "json"
        assert route["fallback"] is False
        assert route["scores"].keys() == {"json", "code", "support"}
        prompt = model.get_num_tokens_from_messages([HumanMessage(ASKED)])
        assert answer.usage_metadata == {
            "input_tokens": prompt,
            "output_tokens": 5,
            "total_tokens": prompt + 5,
        }

    def test_only_the_last_chunk_has_metadata(self, model: ChatAdapterHub):
        chunks = list(model.stream("Hi"))
        assert [bool(chunk.usage_metadata) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        whole = sum(chunks[1:], start=chunks[0])
        answer = model.invoke("Hi")
        assert whole.usage_metadata == answer.usage_metadata
        assert whole.response_metadata == answer.response_metadata
        assert whole.content == answer.content
        assert len(chunks) > 5

    def test_tokens_are_counted_for_each_adapter(self, model: ChatAdapterHub):
        counted = UsageMetadataCallbackHandler()
        for adapter in ("json", "code", "json"):
            model.invoke("Hi", {"callbacks": [counted]}, adapter=adapter, max_tokens=4)
        assert {name: usage["output_tokens"] for name, usage in counted.usage_metadata.items()} == {
            "json": 8,
            "code": 4,
        }

    def test_stop_of_a_call_wins_over_that_of_the_model(self, hub: AdapterHub):
        model = ChatAdapterHub(hub=hub, stop=["Instruction"])
        assert model.invoke("one two").text == "[base] ### "
        assert model.invoke("one two", stop=["two"]).text.endswith("one ")

    def test_messages_for_a_template_that_knows_no_tools(self):
        call = {"name": "add", "args": {"a": 1}, "id": "1", "type": "tool_call"}
        turns = convert_messages(
            [
                SystemMessage("Be brief."),
                HumanMessage([{"type": "text", "text": "Add."}]),
                AIMessage([{"type": "tool_use", "id": "1", "name": "add", "input": {}}], tool_calls=[call]),
                ToolMessage("3", tool_call_id="1"),
                ToolMessage("4", tool_call_id="2"),
            ]
        )
        assert turns[2]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}
        system, user, assistant, results = inline_tool_calls(turns, [{"function": {"name": "add"}}])
        assert system == {"role": "system", "content": "Be brief."}
        assert '<tools>\n{"name": "add"}\n</tools>' in user["content"]
        assert user["content"].endswith("\n\nAdd.")
        written = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
        assert assistant == {"role": "assistant", "content": written}
        assert results["content"].count("<tool_response>") == 2

    def test_an_image_is_refused(self, model: ChatAdapterHub):
        with pytest.raises(InvalidRequestError, match="image"):
            model.invoke([HumanMessage([{"type": "image", "url": "x"}])])


class TestCache:
    def test_a_cached_answer_is_of_one_adapter(self, hub: AdapterHub):
        cache = InMemoryCache()
        model = ChatAdapterHub(hub=hub, model="json", cache=cache)
        first = model.invoke("Hi")
        assert model.invoke("Hi", adapter="code").text != first.text
        assert len(cache._cache) == 2
        for same in (
            lambda: model.invoke("Hi"),
            lambda: model.with_adapter("code").invoke("Hi", config("json")),
        ):
            assert same().text == first.text
        assert ChatAdapterHub(hub=hub, cache=cache).invoke("Hi", model="json").text == first.text

    def test_not_for_another_version(self, tmp_path: Path, tiny_base: Path, tiny_adapters: dict[str, Path]):
        registry = AdapterRegistry(tmp_path)
        registry.register("json", tiny_adapters["json"], base=tiny_base)
        model = ChatAdapterHub(hub=AdapterHub(EchoEngine(), registry), model="json", cache=InMemoryCache())
        assert model.invoke("Hi").response_metadata["adapter_version"] == 1
        registry.register("json", tiny_adapters["code"], base=tiny_base)
        assert model.invoke("Hi").response_metadata["adapter_version"] == 2

    def test_not_for_a_card_that_was_changed(
        self, tmp_path: Path, tiny_base: Path, tiny_adapters: dict[str, Path]
    ):
        registry = AdapterRegistry(tmp_path)
        registry.register("json", tiny_adapters["json"], base=tiny_base)
        model = ChatAdapterHub(hub=AdapterHub(EchoEngine(), registry), model="json", cache=InMemoryCache())
        assert "Be brief." not in model.invoke("Hi").text
        registry.update("json", prompt={"system": "Be brief."})
        assert "Be brief." in model.invoke("Hi").text


class TestTime:
    @pytest.mark.parametrize("entry", ["invoke", "stream", "ainvoke", "astream"])
    async def test_timeout(self, hub: AdapterHub, entry: str):
        slow = AdapterHub(EchoEngine(token_seconds=0.05), hub.registry)
        model = ChatAdapterHub(hub=slow, timeout=1e-9 if entry in ("invoke", "stream") else 0.12)
        entries = {
            "invoke": lambda: asyncio.to_thread(model.invoke, "Hi"),
            "stream": lambda: asyncio.to_thread(lambda: list(model.stream("Hi"))),
            "ainvoke": lambda: model.ainvoke("Hi"),
            "astream": lambda: joined(model.astream("Hi")),
        }
        with pytest.raises(DeadlineError):
            await entries[entry]()


def test_profile_and_tracing(model: ChatAdapterHub):
    assert model.profile is not None
    assert model.profile["structured_output"] is True
    assert model.profile["max_input_tokens"] == 8192
    assert model._get_ls_params(model="json", temperature=1)["ls_model_name"] == "json"
    assert model.get_token_ids("ab") == [97, 98]


def test_traces_name_the_adapter_of_a_copy(model: ChatAdapterHub):
    assert "model='support'" in model._serialized["repr"]
    assert "model='json'" in model.with_adapter("json")._serialized["repr"]
