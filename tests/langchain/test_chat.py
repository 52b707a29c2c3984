"""The chat model: every way to choose an adapter at every way in, and what its answers tell."""

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
from adapterhub.errors import AdapterNotFoundError, ConfigError, DeadlineError
from adapterhub.langchain import ChatAdapterHub


@pytest.fixture
def hub(tiny_registry: Path) -> AdapterHub:
    return AdapterHub(AdapterRegistry(tiny_registry), EchoEngine())


@pytest.fixture
def model(hub: AdapterHub) -> ChatAdapterHub:
    return ChatAdapterHub(hub=hub, model="support")


def config(adapter: str) -> dict[str, Any]:
    return {"configurable": {"adapter": adapter}}


# form -> (what is asked, keyword arguments, config)
FORMS = {
    "field": (lambda m: m.model_copy(update={"model": "json"}), {}, None),
    "model=": (lambda m: m, {"model": "json"}, None),
    "adapter=": (lambda m: m, {"adapter": "json"}, None),
    "config": (lambda m: m, {}, config("json")),
    "call over config": (lambda m: m, {"adapter": "json"}, config("code")),
    "config over field": (lambda m: m.with_adapter("code"), {}, config("json")),
    "with_adapter": (lambda m: m.with_adapter("json"), {}, None),
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
ANSWERED_BY = {"router": "json", "blend": "json@1:0.7+support@1:0.3", "base": "base"}
ASKED = "turn this sentence into json"


async def joined(chunks: Any) -> Any:
    return sum([chunk async for chunk in chunks], start=AIMessageChunk(content=""))


async def events(asked: Any, options: Any, settings: Any) -> Any:
    found = [event async for event in asked.astream_events(ASKED, settings, version="v2", **options)]
    return [event["data"]["output"] for event in found if event["event"] == "on_chat_model_end"][-1]


async def events_v3(asked: Any, options: Any, settings: Any) -> Any:
    if not isinstance(asked, ChatAdapterHub):
        pytest.skip("this beta is for chat models themselves")
    return await (await asked.astream_events(ASKED, settings, version="v3", **options))


async def asynchronous(call: Any) -> Any:
    return await call


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


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:.*beta")
async def test_the_adapter_that_was_chosen_answers(model: ChatAdapterHub, form: str, entry: str):
    asked, options, settings = FORMS[form]
    if entry in ("invoke", "stream", "batch", "batch_as_completed"):
        answer = await asyncio.to_thread(ENTRIES[entry], asked(model), options, settings)
    else:
        answer = await ENTRIES[entry](asked(model), options, settings)
    answer = answer[-1] if isinstance(answer, list) else answer
    wanted = ANSWERED_BY.get(form, "json")
    assert answer.response_metadata["model_name"] == wanted
    assert f"[{wanted if form == 'blend' or wanted == 'base' else 'json@1'}] " in answer.text
