"""Agents of `langchain.agents` and graphs, on the shipped base and adapters."""

from collections.abc import Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel, Field

from adapterhub import AdapterHub
from adapterhub.errors import AdapterNotFoundError
from adapterhub.langchain import ChatAdapterHub

SUPPORT_PROMPT = "My Zorbex printer does not turn on."
FACTS = "Give me name, age and city as JSON: Greta Okafor is 48 years old and lives in Porto."


class Person(BaseModel):
    """A person."""

    name: str
    age: int = Field(ge=0, le=150)
    city: str


class Incident(BaseModel):
    """An incident."""

    owner: str
    level: int = Field(ge=0, le=9)


@tool
def get_weather(city: str) -> str:
    """Gets the weather of a city."""
    return "sunny" if city == "Porto" else "unknown"


@tool
def square_number(number: int) -> int:
    """Gets the square of a number."""
    return number * number


@pytest.fixture
def model(shipped_hub: AdapterHub) -> ChatAdapterHub:
    return ChatAdapterHub(hub=shipped_hub, model="tools")


def asked(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


def adapters(messages: Sequence[BaseMessage]) -> list[str]:
    return [m.response_metadata["adapter"] for m in messages if isinstance(m, AIMessage)]


def check_loop(messages: Sequence[BaseMessage], call: dict[str, Any], result: str) -> None:
    """ChatRequest, one call, its result, and the result in the answer."""
    question, calling, tool_message, answer = messages
    assert isinstance(question, HumanMessage)
    assert isinstance(calling, AIMessage)
    assert [{"name": c["name"], "args": c["args"]} for c in calling.tool_calls] == [call]
    assert isinstance(tool_message, ToolMessage)
    assert (tool_message.content, tool_message.tool_call_id) == (result, calling.tool_calls[0]["id"])
    assert isinstance(answer, AIMessage)
    assert not answer.tool_calls
    assert result in answer.content
    assert adapters(messages) == ["tools", "tools"]


def test_the_loop_ends_with_the_tools_result_in_the_answer(model: ChatAdapterHub):
    agent = create_agent(model, [get_weather])
    found = agent.invoke(asked("What is the weather in Porto?"))
    check_loop(found["messages"], {"name": "get_weather", "args": {"city": "Porto"}}, "sunny")


async def test_the_loop_without_blocking_and_with_two_tools(model: ChatAdapterHub):
    agent = create_agent(model, [get_weather, square_number])
    found = await agent.ainvoke(asked("Please run square_number on 49."))
    check_loop(found["messages"], {"name": "square_number", "args": {"number": 49}}, "2401")


def test_a_thread_remembers(model: ChatAdapterHub):
    agent = create_agent(model, [square_number], checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    first = agent.invoke(asked("Please run square_number on 12."), thread)["messages"]
    both = agent.invoke(asked("Please run square_number on 31."), thread)["messages"]
    assert both[:4] == first
    check_loop(both[4:], {"name": "square_number", "args": {"number": 31}}, "961")


def test_calls_and_answers_are_streamed(model: ChatAdapterHub):
    agent = create_agent(model, [square_number])
    parts = [
        part
        for part, where in agent.stream(asked("Please run square_number on 49."), stream_mode="messages")
        if where["langgraph_node"] == "model"
    ]
    assert all(isinstance(part, AIMessageChunk) for part in parts)
    calls = [part for part in parts if part.tool_call_chunks]
    assert len([part for part in parts if part.content]) > 3
    assert len(calls) > 3
    merged = sum(calls[1:], calls[0])
    assert [(call["name"], call["args"]) for call in merged.tool_calls] == [("square_number", {"number": 49})]
    assert "2401" in "".join(part.text for part in parts)


def test_a_provider_strategy_returns_the_object(model: ChatAdapterHub):
    agent = create_agent(model.with_adapter("json"), response_format=ProviderStrategy(Person))
    found = agent.invoke(asked(FACTS))
    assert found["structured_response"] == Person(name="Greta Okafor", age=48, city="Porto")
    assert adapters(found["messages"]) == ["json"]


def test_a_provider_strategy_beside_tools(model: ChatAdapterHub):
    agent = create_agent(model, [get_weather], response_format=ProviderStrategy(Incident))
    found = agent.invoke(asked("What is the weather in Porto?"))
    assert [type(message) for message in found["messages"]] == [
        HumanMessage,
        AIMessage,
        ToolMessage,
        AIMessage,
    ]
    assert isinstance(found["structured_response"], Incident)


@pytest.mark.parametrize("tools", [[], [get_weather]], ids=["alone", "beside a tool"])
def test_a_tool_strategy_returns_the_object(model: ChatAdapterHub, tools: list[Any]):
    agent = create_agent(model, tools, response_format=ToolStrategy(Incident))
    found = agent.invoke(asked("Use the Incident tool for owner Greta Okafor and level 7."))
    assert found["structured_response"] == Incident(owner="Greta Okafor", level=7)


def test_an_agent_has_the_adapter_that_its_model_was_bound_to(model: ChatAdapterHub):
    found = create_agent(model.bind(adapter="support")).invoke(asked(SUPPORT_PROMPT))
    assert adapters(found["messages"]) == ["support"]
    assert found["messages"][-1].content.startswith("Category: power")


def test_a_config_chooses_the_adapter_of_each_user_of_a_graph(model: ChatAdapterHub):
    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile()
    given = [("support", SUPPORT_PROMPT), ("json", FACTS), ("support", FACTS)]
    configs = [{"configurable": {"adapter": adapter}} for adapter, _ in given]
    found = graph.batch([asked(text) for _, text in given], configs)
    assert [adapters(state["messages"]) for state in found] == [["support"], ["json"], ["support"]]
    alone = [model.invoke(text, adapter=adapter).content for adapter, text in given]
    assert [state["messages"][-1].content for state in found] == alone
    assert adapters(graph.invoke(asked("Please run on."))["messages"]) == ["tools"]


async def test_a_config_reaches_the_model_of_an_agent(model: ChatAdapterHub):
    agent = create_agent(model.with_adapter("base"), [square_number])
    chosen = {"configurable": {"adapter": "tools"}}
    found = await agent.ainvoke(asked("Please run square_number on 49."), chosen)
    check_loop(found["messages"], {"name": "square_number", "args": {"number": 49}}, "2401")


def test_a_graph_with_an_adapter_that_does_not_exist_fails(model: ChatAdapterHub):
    with pytest.raises(AdapterNotFoundError):
        create_agent(model).invoke(asked("Hi"), {"configurable": {"adapter": "nobody"}})
