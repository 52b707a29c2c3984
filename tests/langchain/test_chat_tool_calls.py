"""Tool calls and objects as answers, from random weights: what holds does not depend on the model."""

import asyncio
from typing import Any

import jsonschema
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.utils.function_calling import convert_to_openai_tool
from typing_extensions import TypedDict

from adapterhub import AdapterHub
from adapterhub.errors import GenerationError, InvalidRequestError
from adapterhub.langchain import AdapterHubLLM, ChatAdapterHub
from adapterhub.tool_calling.call_format import HERMES
from adapterhub.tool_calling.call_parser import ToolCallParser, parse_tool_calls
from adapterhub.tool_calling.tool_choice import ToolChoice
from tests.langchain.helpers import Person, add, idle, now

TOKENS = 24
ANSWER = (
    'Well.\n<tool_call>\n{"name": "add", "arguments": {"a": "</tool_call>", "b": [1]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "no\\"w", "arguments": {}}\n</tool_call>'
)


class Place(TypedDict):
    """A place."""

    city: str


@pytest.fixture
def model(live_hub: AdapterHub) -> ChatAdapterHub:
    return ChatAdapterHub(hub=live_hub, model="json", max_tokens=100, temperature=1.0, seed=3)


def check(calls: list[Any]) -> None:
    schemas = {one.name: convert_to_openai_tool(one)["function"]["parameters"] for one in (add, now)}
    for call in calls:
        jsonschema.validate(call["args"], schemas[call["name"]])
        assert call["id"]


class TestParser:
    def test_text_and_calls(self):
        text, calls = parse_tool_calls(ANSWER, HERMES)
        assert text == "Well."
        assert [(call["name"], call["args"]) for call in calls] == [
            ("add", {"a": "</tool_call>", "b": [1]}),
            ('no"w', {}),
        ]
        assert calls[0]["id"] != calls[1]["id"]

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
    def test_deltas_of_any_size(self, size: int):
        parser, parts = ToolCallParser(HERMES), []
        for start in range(0, len(ANSWER), size):
            parts += parser.push(ANSWER[start : start + size])
        parts += parser.flush()
        assert "".join(part for part in parts if isinstance(part, str)) == "Well."
        message = AIMessageChunk(content="")
        for part in parts:
            if not isinstance(part, str):
                message += AIMessageChunk(content="", tool_call_chunks=[part])
        assert [call["args"] for call in message.tool_calls] == [{"a": "</tool_call>", "b": [1]}, {}]
        assert not message.invalid_tool_calls

    @pytest.mark.parametrize("text", ["", "\n", "a < b", "<tool", "x\n<tool_cal", "один\n\n"])
    def test_text_that_only_looks_like_a_call_stays_text(self, text: str):
        assert parse_tool_calls(text, HERMES) == (text, [])

    def test_a_truncated_call(self):
        with pytest.raises(GenerationError):
            parse_tool_calls(ANSWER[:-5], HERMES)


class TestChoice:
    TOOLS = tuple(convert_to_openai_tool(one) for one in (add, now))

    @pytest.mark.parametrize(
        ("wanted", "names", "required"),
        [
            (None, ["add", "now"], False),
            ("auto", ["add", "now"], False),
            ("none", [], False),
            ({"type": "none"}, [], False),
            ("any", ["add", "now"], True),
            ("required", ["add", "now"], True),
            (True, ["add", "now"], True),
            ({"type": "any"}, ["add", "now"], True),
            ("now", ["now"], True),
            ({"type": "function", "function": {"name": "now"}}, ["now"], True),
            ({"type": "tool", "name": "now"}, ["now"], True),
        ],
    )
    def test_choices(self, wanted: Any, names: list[str], required: bool):
        choice = ToolChoice.of(self.TOOLS, wanted)
        assert [one["function"]["name"] for one in choice.tools] == names
        assert choice.required is required

    @pytest.mark.parametrize("wanted", ["nothing", {"type": "function", "function": {"name": "x"}}, 7, []])
    def test_refused(self, wanted: Any):
        with pytest.raises(InvalidRequestError, match="no such tool"):
            ToolChoice.of(self.TOOLS, wanted)
        with pytest.raises(InvalidRequestError, match="no such tool"):
            ToolChoice.of((), "any")


class TestCalls:
    @pytest.mark.parametrize("wanted", ["any", "add", "now"])
    def test_required(self, model: ChatAdapterHub, wanted: str):
        answer = model.bind_tools([add, now], tool_choice=wanted).invoke("Hi")
        assert answer.tool_calls
        assert answer.response_metadata["finish_reason"] == "tool_calls"
        assert wanted == "any" or [call["name"] for call in answer.tool_calls] == [wanted]
        check(answer.tool_calls)

    def test_one_call_where_there_may_be_one_only(self, model: ChatAdapterHub):
        bound = model.bind_tools([add, now], tool_choice="any", parallel_tool_calls=False, strict=True)
        assert len(bound.invoke("Hi", max_tokens=300).tool_calls) == 1

    async def test_streamed(self, model: ChatAdapterHub):
        bound = model.bind_tools([add], tool_choice="any")
        chunks = [chunk async for chunk in bound.astream("Hi")]
        parts = [part for chunk in chunks for part in chunk.tool_call_chunks]
        assert parts[0]["name"] == "add"
        assert parts[0]["id"]
        assert len(parts) > 2
        assert {part["name"] for part in parts[1:] if part["index"] == 0} == {None}
        whole = sum(chunks[1:], start=chunks[0])
        check(whole.tool_calls)
        assert [call["args"] for call in whole.tool_calls] == [
            call["args"] for call in bound.invoke("Hi").tool_calls
        ]

    def test_auto_and_none(self, model: ChatAdapterHub):
        for seed in range(3):
            answer = model.bind_tools([add, now]).invoke("Hi", seed=seed)
            assert answer.text or answer.tool_calls
            assert not answer.invalid_tool_calls
            check(answer.tool_calls)
        assert model.bind_tools([add], tool_choice="none").invoke("Hi").tool_calls == []
        assert model.bind_tools([]).invoke("Hi").text

    def test_the_prompt_contains_the_tools(self, model: ChatAdapterHub):
        without = model.get_num_tokens_from_messages([HumanMessage("Hi")])
        assert model.get_num_tokens_from_messages([HumanMessage("Hi")], [add]) > without + 50

    def test_tools_or_structured_output(self, model: ChatAdapterHub):
        bound = model.bind_tools([now], response_format=Person)
        for seed in range(3):
            answer = bound.invoke("Hi", seed=seed)
            if answer.tool_calls:
                check(answer.tool_calls)
            else:
                Person.model_validate_json(answer.text)
        assert bound.invoke("Hi", tool_choice="now").tool_calls


class TestStructuredOutput:
    @pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
    @pytest.mark.parametrize(
        "schema", [Person, Place, Person.model_json_schema()], ids=["model", "typed", "json"]
    )
    def test_each_method_and_schema(self, model: ChatAdapterHub, method: str, schema: Any):
        structured = model.with_structured_output(schema, method=method, include_raw=True)
        answer = structured.invoke("Hi")
        assert answer["parsing_error"] is None
        if schema is Person:
            assert isinstance(answer["parsed"], Person)
        else:
            assert answer["parsed"].keys() == ({"city"} if schema is Place else {"name", "age"})
        assert answer["raw"].response_metadata["model_name"] == "json"

    def test_any_json_object(self, model: ChatAdapterHub):
        assert isinstance(model.with_structured_output(method="json_mode").invoke("Hi"), dict)

    def test_the_adapter_stays(self, model: ChatAdapterHub):
        for structured in (
            model.bind(adapter="code").with_structured_output(Person, include_raw=True),
            model.with_structured_output(Person, include_raw=True, adapter="code"),
        ):
            assert structured.invoke("Hi")["raw"].response_metadata["model_name"] == "code"
        structured = model.with_structured_output(Person, include_raw=True)
        answer = structured.invoke("Hi", {"configurable": {"adapter": "support"}})
        assert answer["raw"].response_metadata["model_name"] == "support"

    @pytest.mark.parametrize(
        ("schema", "method"), [(None, "json_schema"), (Person, "magic"), (7, "json_schema")]
    )
    def test_refused(self, model: ChatAdapterHub, schema: Any, method: Any):
        with pytest.raises(InvalidRequestError):
            model.with_structured_output(schema, method=method)


REQUESTS = tuple((f"Say {number}", name) for number in range(6) for name in ("json", "code", "support"))


@pytest.fixture(scope="module")
def alone(live_hub: AdapterHub) -> tuple[list[str], int]:
    """Single answers to `REQUESTS`, and the forward passes of the longest of them."""
    model, texts, longest = ChatAdapterHub(hub=live_hub, max_tokens=TOKENS), [], 0
    for prompt, name in REQUESTS:
        before = live_hub.stats().steps
        texts.append(model.invoke(prompt, adapter=name).text)
        longest = max(longest, live_hub.stats().steps - before)
    return texts, longest


class TestBatching:
    @pytest.mark.alone
    @pytest.mark.parametrize("entry", ["batch", "abatch", "LLM batch", "LLM abatch"])
    async def test_a_batch_shares_its_forward_passes(
        self, live_hub: AdapterHub, alone: tuple[list[str], int], entry: str
    ):
        wanted, longest = alone
        of_what = AdapterHubLLM if entry.startswith("LLM") else ChatAdapterHub
        model: Any = of_what(hub=live_hub, max_tokens=TOKENS)
        prompts = [prompt for prompt, _ in REQUESTS]
        configs: list[Any] = [{"configurable": {"adapter": name}} for _, name in REQUESTS]
        passes: list[int] = []
        # A step that begins before the machine has run every caller's thread leaves some of them to the next one.
        while len(passes) < 5 and min(passes, default=2 * longest) > 1.5 * longest:
            before = live_hub.stats().steps
            if entry.endswith("abatch"):
                answers = await model.abatch(prompts, configs)
            else:
                answers = await asyncio.to_thread(model.batch, prompts, configs)
            passes.append(live_hub.stats().steps - before)
            assert [answer if isinstance(answer, str) else answer.text for answer in answers] == wanted
        assert len(set(wanted)) > 12
        assert longest == TOKENS
        assert min(passes) <= 1.5 * longest, passes

    async def test_cancelling_a_task_aborts_the_request(self, live_hub: AdapterHub):
        model = ChatAdapterHub(hub=live_hub, max_tokens=2000)
        before = live_hub.stats().tokens
        task = asyncio.create_task(model.ainvoke("Hi", ignore_eos=True))
        while live_hub.stats().tokens == before:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(live_hub)
        assert live_hub.stats().tokens - before < 1000

    async def test_closing_a_stream_aborts_the_request(self, live_hub: AdapterHub):
        model = ChatAdapterHub(hub=live_hub, max_tokens=2000)
        before = live_hub.stats().tokens
        stream = model.stream("Hi", ignore_eos=True)
        next(stream)
        stream.close()
        await idle(live_hub)
        chunks = model.astream("Hi", ignore_eos=True)
        await anext(chunks)
        await chunks.aclose()
        await idle(live_hub)
        assert live_hub.stats().tokens - before < 1000
