"""Messages of other providers, and results of tools, as a chat template sees them."""

import copy
from typing import Any

import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.tools import tool

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.errors import InvalidRequestError, RequestTooLongError
from adapterhub.langchain import AdapterHubLLM, AdapterToolkit, ChatAdapterHub, huggingface_pipeline
from adapterhub.langchain.message_conversion import convert_messages
from adapterhub.tool_calling.call_format import HERMES
from adapterhub.tool_calling.call_messages import fit_tool_calls, inline_tool_calls
from tests.langchain.helpers import add
from tests.tiny import make_tokenizer

ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>"
    "{% endfor %}"
)
QUESTION = HumanMessage("x")
T = {"type": "text", "text": "T"}


@pytest.fixture
def hub(tmp_path: Any) -> AdapterHub:
    return AdapterHub(EchoEngine(), AdapterRegistry(tmp_path))


@tool
def prices() -> list:
    """Prices."""
    return ["10", "20", "35"]


def content(message: BaseMessage) -> str:
    return convert_messages([message, QUESTION])[0]["content"]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (prices.invoke({"type": "tool_call", "id": "1", "name": "prices", "args": {}}), "10\n20\n35"),
        (ToolMessage([T, {"type": "text", "text": "b.md"}], tool_call_id="1"), "T\nb.md"),
        (HumanMessage([{"type": "text", "text": "Summarise:"}, "The report"]), "Summarise:\nThe report"),
        (HumanMessage([{"type": "text", "text": None}]), ""),
        (HumanMessage([{"type": "text"}, {"type": "text", "text": "a"}]), "a"),
        (HumanMessage([{"type": "input_text", "text": "x"}]), "x"),
        (AIMessage([{"type": "output_text", "text": "x"}]), "x"),
        (HumanMessage([{"type": "text-plain", "text": "doc", "mime_type": "text/plain"}]), "doc"),
        (AIMessage([{"type": "refusal", "refusal": "no"}]), "no"),
        (AIMessage([{"type": "thinking", "thinking": "hm", "signature": "s"}, T]), "T"),
        (AIMessage([{"type": "redacted_thinking", "data": "x"}, T]), "T"),
        (AIMessage([{"type": "reasoning", "summary": []}, T]), "T"),
        (AIMessage([{"type": "server_tool_call", "id": "1", "name": "w", "args": {}}, T]), "T"),
        (AIMessage([{"type": "server_tool_use", "id": "1", "name": "w", "input": {}}, T]), "T"),
        (AIMessage([{"type": "web_search_tool_result", "content": []}, T]), "T"),
        (AIMessage([{"type": "server_tool_result", "tool_call_id": "1", "output": "x"}, T]), "T"),
        (AIMessage([{"type": "code_interpreter_call", "id": "1"}, T]), "T"),
        (AIMessage([{"type": "non_standard", "value": {}}, T]), "T"),
        (AIMessage([{"type": "invalid_tool_call", "name": "w", "args": "{", "id": "1", "error": "e"}]), ""),
        (HumanMessage([{"type": "tool_result", "tool_use_id": "1", "content": "42"}, T]), "42\nT"),
        (HumanMessage([{"type": "tool_result", "tool_use_id": "1", "content": [T, {"type": "image"}]}]), "T\n[image]"),
        (ToolMessage([{"type": "json", "json": {"a": 1}}], tool_call_id="1"), '{"a": 1}'),
        (ToolMessage([{"type": "json", "json": [1, 2]}], tool_call_id="1"), "[1, 2]"),
        (ToolMessage([{"type": "custom_tool_call_output", "output": "T"}], tool_call_id="1"), "T"),
        (ToolMessage([{"type": "search_result", "title": "t", "content": [T]}], tool_call_id="1"), "T"),
        (ToolMessage([{"type": "document", "source": {"type": "text", "data": "T"}}], tool_call_id="1"), "T"),
        (ToolMessage([{"type": "document", "source": {"type": "url", "url": "T"}}], tool_call_id="1"), "[document]"),
        (ToolMessage([T, {"type": "image", "base64": "AAAA"}], tool_call_id="1"), "T\n[image]"),
        (HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "?"}]), "[image]\n?"),
        (HumanMessage([{"type": "something_new"}]), "[something_new]"),
        (ToolMessage([{"a": 1}], tool_call_id="1"), '{"a": 1}'),
    ],
)  # fmt: skip
def test_blocks_of_a_history(message: BaseMessage, expected: str):
    assert content(message) == expected


def test_results_and_documents_in_the_users_newest_message_are_read():
    blocks = [
        {"type": "tool_result", "tool_use_id": "1", "content": "42"},
        {"type": "document", "source": {"type": "text", "data": "T"}},
    ]
    assert convert_messages([HumanMessage(blocks)])[0]["content"] == "42\nT"


@pytest.mark.parametrize("kind", ["image", "image_url", "audio", "file"])
def test_what_the_user_asks_about_now_is_text(kind: str):
    with pytest.raises(InvalidRequestError, match=kind):
        convert_messages([QUESTION, HumanMessage([{"type": kind}, {"type": "text", "text": "?"}])])


class TestInvalidCalls:
    MESSAGES = (
        QUESTION,
        AIMessage(
            "",
            tool_calls=[{"name": "w", "args": {"city": "Rome"}, "id": "a"}],
            invalid_tool_calls=[{"name": "w", "args": '{"city": "Par', "id": "b", "error": "e"}],
        ),
        ToolMessage("sunny", tool_call_id="a"),
        ToolMessage("bad JSON", tool_call_id="b"),
    )

    def test_they_are_kept_with_their_text(self):
        calls = fit_tool_calls(convert_messages(self.MESSAGES), HERMES)[1]["tool_calls"]
        assert [call["id"] for call in calls] == ["a", "b"]
        assert [call["function"]["arguments"] for call in calls] == [{"city": "Rome"}, '{"city": "Par']

    def test_without_native_tools_too(self):
        written = inline_tool_calls(convert_messages(self.MESSAGES), [])
        assert written[1]["content"].count("<tool_call>") == 2
        assert r"{\"city\": \"Par" in written[1]["content"]


CALL = AIMessage("", tool_calls=[{"name": "w", "args": {}, "id": "1"}])
RESULT = ToolMessage("r", tool_call_id="1")


@pytest.mark.parametrize(
    "messages",
    [
        [QUESTION, CALL, RESULT],
        [QUESTION, CALL, RESULT, RESULT],
        [QUESTION, CALL, RESULT, HumanMessage("and now?")],
        [QUESTION, CALL, RESULT, RESULT, HumanMessage("and now?"), AIMessage("so"), HumanMessage("ah")],
        [QUESTION, RESULT],
    ],
)
def test_results_and_what_the_user_says_next_are_one_turn(messages: list[BaseMessage], tmp_path: Any):
    engine = EchoEngine()
    engine.tokenizer = make_tokenizer(chat_template=ALTERNATING)  # type: ignore[assignment]
    written = inline_tool_calls(convert_messages(messages), [])
    assert [turn["role"] for turn in written] == (["user", "assistant"] * 9)[: len(written)]
    text = "".join(turn["content"] for turn in written)
    assert all(message.text in text for message in messages)
    assert AdapterHub(engine, AdapterRegistry(tmp_path))._count_prompt_tokens(written, None, None)


def test_messages_of_one_role_are_merged_only_beside_results():
    turns = inline_tool_calls(convert_messages([QUESTION, QUESTION, CALL, RESULT, SystemMessage("s")]), [])
    assert [turn["role"] for turn in turns] == ["user", "user", "assistant", "user", "system"]


class TestCounting:
    def test_nothing_is_no_tokens(self, hub: AdapterHub):
        assert ChatAdapterHub(hub=hub).get_num_tokens_from_messages([]) == 0

    @pytest.mark.parametrize("message", [HumanMessage(""), AIMessage(""), SystemMessage("")])
    def test_a_message_without_text(self, hub: AdapterHub, message: BaseMessage):
        count = ChatAdapterHub(hub=hub).get_num_tokens_from_messages
        assert 0 < count([message]) < count([HumanMessage("abc")])

    def test_a_part_of_a_conversation_that_the_template_refuses(self, tmp_path: Any):
        engine = EchoEngine()
        engine.tokenizer = make_tokenizer(chat_template=ALTERNATING)  # type: ignore[assignment]
        model = ChatAdapterHub(hub=AdapterHub(engine, AdapterRegistry(tmp_path)))
        alone = engine.tokenizer.encode("so it is")
        assert model.get_num_tokens_from_messages([AIMessage("so it is")]) == len(alone)
        kept = trim_messages([QUESTION, AIMessage("so it is"), QUESTION], max_tokens=20, token_counter=model)
        assert kept


class TestTooLong:
    LONG = "a" * 10_000

    def test_a_chat_model(self, hub: AdapterHub):
        model = ChatAdapterHub(hub=hub)
        with pytest.raises(ContextOverflowError) as caught:
            model.invoke(self.LONG)
        assert isinstance(caught.value, RequestTooLongError)
        assert caught.value.hint
        with pytest.raises(ContextOverflowError):
            list(model.stream(self.LONG))

    async def test_a_chat_model_asynchronously(self, hub: AdapterHub):
        model = ChatAdapterHub(hub=hub)
        with pytest.raises(ContextOverflowError):
            await model.ainvoke(self.LONG)
        with pytest.raises(ContextOverflowError):
            _ = [chunk async for chunk in model.astream(self.LONG)]

    async def test_an_llm(self, hub: AdapterHub):
        llm = AdapterHubLLM(hub=hub)
        for ask in (llm.invoke, lambda text: list(llm.stream(text))):
            with pytest.raises(ContextOverflowError):
                ask(self.LONG)
        with pytest.raises(ContextOverflowError):
            await llm.ainvoke(self.LONG)

    def test_a_pipeline(self, hub: AdapterHub):
        llm = huggingface_pipeline(hub, "base")
        for ask in (llm.invoke, lambda text: list(llm.stream(text))):
            with pytest.raises(ContextOverflowError):
                ask(self.LONG)


def test_deep_copies_share_the_hub(hub: AdapterHub):
    model = ChatAdapterHub(hub=hub, stop=["x"])
    copied, bound = copy.deepcopy((model, model.bind_tools([add])))
    assert copied == model
    assert copied.hub is hub
    assert copied.stop is not model.stop
    assert bound.bound.hub is hub
    assert copied.invoke("Hi").text == model.invoke("Hi").text
    assert copy.deepcopy(AdapterToolkit(hub=hub)).hub is hub
    pipeline = huggingface_pipeline(hub, "base")
    assert copy.deepcopy(pipeline).invoke("Hi") == pipeline.invoke("Hi")


def test_texts_that_are_no_unicode_and_nested_arguments(hub: AdapterHub):
    model = ChatAdapterHub(hub=hub)
    with pytest.raises(InvalidRequestError, match="Unicode"):
        model.get_num_tokens("\ud800")
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(InvalidRequestError, match="nested"):
        hub.generate([{"role": "user", "content": "x", "extra": nested}])


@pytest.mark.parametrize("wrong", [5, None, {}, {"schema": 5}])
def test_a_response_format_without_a_schema(hub: AdapterHub, wrong: Any):
    with pytest.raises(InvalidRequestError, match="no json_schema"):
        ChatAdapterHub(hub=hub).invoke("x", response_format={"type": "json_schema", "json_schema": wrong})


@pytest.mark.parametrize(
    ("role", "expected"),
    [("human", "user"), ("ai", "assistant"), ("function", "tool"), ("developer", "system"), ("user", "user")],
)
def test_roles_of_chat_messages(role: str, expected: str):
    assert convert_messages([ChatMessage("x", role=role)])[0]["role"] == expected


class TestTools:
    @pytest.mark.parametrize("kind", ["web_search", "web_search_20250305", "code_interpreter", "mcp"])
    def test_a_tool_of_a_provider(self, hub: AdapterHub, kind: str):
        with pytest.raises(InvalidRequestError, match=f"{kind}.*runs at the provider"):
            ChatAdapterHub(hub=hub).bind_tools([add, {"type": kind, "name": kind}])
        with pytest.raises(InvalidRequestError, match=f"{kind}.*runs at the provider"):
            ChatAdapterHub(hub=hub).invoke("Hi", tools=[{"type": kind}])

    @pytest.mark.parametrize("wrong", [{"googleSearch": {}}, {"type": "function", "name": "x"}, 5])
    def test_what_is_no_tool(self, hub: AdapterHub, wrong: Any):
        with pytest.raises(InvalidRequestError, match="cannot be converted"):
            ChatAdapterHub(hub=hub).bind_tools([wrong])

    @pytest.mark.parametrize("choice", ["any", "required", True])
    def test_a_call_is_required_and_there_are_no_tools(self, hub: AdapterHub, choice: Any):
        with pytest.raises(InvalidRequestError, match="no tools at all") as caught:
            ChatAdapterHub(hub=hub).bind_tools([], tool_choice=choice)
        assert "bind_tools" in (caught.value.hint or "")
