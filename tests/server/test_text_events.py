"""Events whose common part is serialised once have the same bytes as those that are serialised whole."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from pydantic_core import PydanticSerializationError

from adapterhub.server.generating.streaming import event
from adapterhub.server.generating.text_events import TextEvents

TEXTS = [
    "a",
    "",
    '"',
    "\\",
    '\\"',
    "\n\r\t",
    "\x00\x1f\x7f",
    "\u2028\u2029",
    "é",
    "😀",
    "</script>",
    '"content":""',
]


def chunk(text: str) -> dict[str, Any]:
    """A chunk whose other fields have odd texts too."""
    choice = {"index": 1, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return {"id": '"\\{}\n', "model": "modèle 😀", "choices": [choice], "usage": None}


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_those_of_the_plain_form(text: str):
    assert TextEvents(chunk).event(text) == event(chunk(text))


def test_a_lone_surrogate_is_an_error_as_in_the_plain_form():
    events = TextEvents(chunk)
    with pytest.raises(PydanticSerializationError):
        event(chunk("\ud83d"))
    with pytest.raises(PydanticSerializationError):
        events.event("\ud83d")


@pytest.mark.parametrize("options", [{}, {"include_usage": True}])
@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "".join(TEXTS)}]}),
        ("completions", {"prompt": "".join(TEXTS)}),
    ],
)
async def test_streams_have_the_bytes_of_the_plain_form(
    client: httpx.AsyncClient, path: str, asked: dict[str, Any], options: dict[str, Any]
):
    body = {"model": "json", "stream": True, "n": 2, "stream_options": options, **asked}
    answer = await client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200
    *events, done, end = answer.content.split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    texts = ["", ""]
    for one in events:
        fields = json.loads(one.removeprefix(b"data: "))
        assert event(fields) == one + b"\n\n"  # the same order of fields and the same escapes
        assert ("usage" in fields) == bool(options)
        for choice in fields["choices"]:
            texts[choice["index"]] += choice.get("text") or choice.get("delta", {}).get("content") or ""
    whole = (await client.post(f"/v1/{path}", json={**asked, "model": "json", "n": 2})).json()
    assert texts == [choice.get("text") or choice["message"]["content"] for choice in whole["choices"]]
    assert "😀" in texts[0]
