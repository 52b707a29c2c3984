"""What tests of the LangChain models share: tools, an object, entries to name an adapter, settings of the suites."""

import asyncio
from typing import Any, Literal

import pytest
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from adapterhub import AdapterHub
from adapterhub.langchain import ChatAdapterHub


@tool
def add(a: int, b: Literal["one", "two"]) -> str:
    """Adds."""
    return f"{a} {b}"


@tool
def now() -> str:
    """Tells the time."""
    return "noon"


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=8)
    age: int = Field(ge=0, le=99)


def config(adapter: str) -> dict[str, Any]:
    return {"configurable": {"adapter": adapter}}


# How the adapter is selected -> (model, keyword arguments, config)
SELECTIONS = {
    "field": (lambda m: m.model_copy(update={"model": "json"}), {}, None),
    "model=": (lambda m: m, {"model": "json"}, None),
    "adapter=": (lambda m: m, {"adapter": "json"}, None),
    "config": (lambda m: m, {}, config("json")),
    "call over config": (lambda m: m, {"adapter": "json"}, config("code")),
    "config over field": (lambda m: m.with_adapter("code"), {}, config("json")),
    "with_adapter": (lambda m: m.with_adapter("json"), {}, None),
}


async def idle(hub: AdapterHub) -> None:
    """Waits until no answer runs."""
    for _ in range(100):
        if not hub.stats().running:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the answer went on")


class ChatSuite:
    """Settings of LangChain's suites for a chat model on a hub."""

    @property
    def chat_model_class(self) -> type[ChatAdapterHub]:
        return ChatAdapterHub

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "base"
