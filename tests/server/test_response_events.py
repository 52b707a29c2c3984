"""The events of a streamed response, read by the openai client's own types."""

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from adapterhub.server.generating.response_events import ResponseEvents
from adapterhub.server.protocol.response_answers import IncompleteDetails, ResponseObject
from adapterhub.tool_calling import ToolCallChunk

EVENT = TypeAdapter(ResponseStreamEvent)
STARTED = ResponseObject(id="resp_1", created_at=1, model="json")
COMPLETED = STARTED.model_copy(update={"status": "completed"})


def call(index: int, name: str, *arguments: str) -> list[ToolCallChunk]:
    first = ToolCallChunk(name=name, args="", id=f"call_{index}", index=index)
    return [first, *(ToolCallChunk(name=None, args=part, id=None, index=index) for part in arguments)]


def events_of(parts: list[str | ToolCallChunk], ended: ResponseObject = COMPLETED) -> list[dict]:
    made = ResponseEvents(STARTED.model_copy(deep=True))
    told = [*made.start(), *(event for part in parts for event in made.add(part)), *made.end(ended)]
    for event in told:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    return told


def kinds(told: list[dict]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in told]


MESSAGE = ["output_item.added", "content_part.added"]
MESSAGE_END = ["output_text.done", "content_part.done", "output_item.done"]
CALL_END = ["function_call_arguments.done", "output_item.done"]


def test_a_text():
    told = events_of(["Good ", "day"])
    assert kinds(told) == [
        *("created", "in_progress"),
        *MESSAGE,
        *("output_text.delta", "output_text.delta"),
        *MESSAGE_END,
        "completed",
    ]
    response = Response.model_validate(told[-1]["response"])
    assert response.output_text == "Good day"
    assert told[0]["response"]["output"] == []
    assert told[2]["item"]["content"] == []
    assert told[2]["item"]["id"] == told[4]["item_id"] == response.output[0].id


def test_a_text_and_two_calls():
    told = events_of(["Well.", *call(0, "add", '{"a":', "1}"), *call(1, "now", "{}")])
    assert kinds(told) == [
        *("created", "in_progress"),
        *MESSAGE,
        "output_text.delta",
        *MESSAGE_END,
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *CALL_END,
        *("output_item.added", "function_call_arguments.delta"),
        *CALL_END,
        "completed",
    ]
    message, added, now = Response.model_validate(told[-1]["response"]).output
    assert (message.type, added.name, added.arguments, added.call_id) == (
        "message",
        "add",
        '{"a":1}',
        "call_0",
    )
    assert (now.name, now.arguments, now.status) == ("now", "{}", "completed")
    assert [event["output_index"] for event in told if "output_index" in event] == [0] * 6 + [1] * 5 + [2] * 4
    assert added.id != now.id


def test_an_empty_answer_is_a_message_without_text():
    assert kinds(events_of([])) == ["created", "in_progress", *MESSAGE, *MESSAGE_END, "completed"]


def test_an_answer_that_ran_into_the_limit_is_incomplete():
    ended = STARTED.model_copy(update={"status": "incomplete", "incomplete_details": IncompleteDetails()})
    told = events_of(["Good"], ended)
    assert kinds(told)[-1] == "incomplete"
    assert told[-1]["response"]["output"][0]["status"] == "incomplete"
    assert told[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize("parts", [[], ["Good"]])
def test_a_failure_keeps_what_there_was(parts: list[str]):
    told = events_of(parts, STARTED.model_copy(update={"status": "failed"}))
    assert kinds(told)[-1] == "failed"
    texts = [item["content"][0]["text"] for item in told[-1]["response"]["output"]]
    assert texts == parts
