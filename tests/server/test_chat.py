"""`/v1/chat/completions` on an engine whose answer is `[adapter] prompt`, a character a token."""

import json
from typing import Any

import httpx
import pytest

from adapterhub.server.protocol.chat import ChatMessage

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
PROMPT = "### Instruction:\nHi\n\n### Response:\n"


async def chat(client: httpx.AsyncClient, messages: object = HI, **fields: object) -> dict[str, Any]:
    answer = await client.post(PATH, json={"model": "json", "messages": messages, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def chunks(client: httpx.AsyncClient, messages: object = HI, **fields: object) -> list[dict[str, Any]]:
    answer = await client.post(PATH, json={"model": "json", "messages": messages, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    *frames, done = [frame.removeprefix("data: ") for frame in answer.text.split("\n\n") if frame]
    assert done == "[DONE]"
    return [json.loads(frame) for frame in frames]


async def refused(client: httpx.AsyncClient, messages: object) -> dict[str, Any]:
    answer = await client.post(PATH, json={"model": "json", "messages": messages})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def text_of(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"]


class TestAnswer:
    async def test_has_openai_form(self, client: httpx.AsyncClient):
        answer = await chat(client, max_tokens=9)
        assert answer["id"].startswith("chatcmpl-")
        assert answer["object"] == "chat.completion"
        assert answer["model"] == "json"
        (choice,) = answer["choices"]
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == "[json@1] "
        assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
        usage = {"prompt_tokens": len(PROMPT), "completion_tokens": 9, "total_tokens": len(PROMPT) + 9}
        assert answer["usage"] == usage
        assert answer["adapterhub"] == {"adapter": "json", "version": 1, "route": None}

    async def test_the_fingerprint_is_that_of_the_base(self, client: httpx.AsyncClient):
        first, second = await chat(client), await chat(client, model="base")
        assert first["system_fingerprint"] == second["system_fingerprint"]
        assert first["system_fingerprint"].startswith("adapterhub-")

    async def test_n_answers(self, client: httpx.AsyncClient):
        answer = await chat(client, n=3, max_tokens=2)
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
        assert answer["usage"]["completion_tokens"] == 6

    async def test_stop_strings_are_left_out(self, client: httpx.AsyncClient):
        answer = await chat(client, stop="###")
        assert text_of(answer) == "[json@1] "
        assert answer["choices"][0]["finish_reason"] == "stop"


class TestMessages:
    async def test_developer_is_system(self, client: httpx.AsyncClient):
        developer = await chat(client, [{"role": "developer", "content": "Be kind."}, *HI])
        system = await chat(client, [{"role": "system", "content": "Be kind."}, *HI])
        assert text_of(developer) == text_of(system)
        assert "Be kind." in text_of(system)

    async def test_parts_of_text_are_lines(self, client: httpx.AsyncClient):
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        assert "one\ntwo" in text_of(await chat(client, [{"role": "user", "content": parts}]))

    @pytest.mark.parametrize(
        "part",
        [
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
            {"type": "file", "file": {"file_id": "a"}},
            {"type": "text"},
        ],
    )
    async def test_other_parts_are_refused_where_they_are(self, client: httpx.AsyncClient, part: object):
        error = await refused(
            client, [*HI, {"role": "user", "content": [{"type": "text", "text": "a"}, part]}]
        )
        assert error["param"] == "messages.1.content.1"
        assert error["code"] == "unsupported_parameter"

    async def test_fields_of_earlier_answers_are_taken_back(self, client: httpx.AsyncClient):
        earlier = (await chat(client, max_tokens=5))["choices"][0]["message"]
        again = await chat(client, [*HI, {**earlier, "annotations": [], "audio": None}])
        assert text_of(again).endswith("### Response:\n[json\n\n### Response:\n")

    @pytest.mark.parametrize(
        "messages", [[], None, "Hi", [{"content": "Hi"}], [{"role": "king", "content": "Hi"}], [1]]
    )
    async def test_others_are_refused(self, client: httpx.AsyncClient, messages: object):
        assert (await refused(client, messages))["param"].startswith("messages")

    def test_who_wrote_one_reaches_the_chat_template(self):
        message = ChatMessage(role="tool", tool_call_id="call_1", name="now", content="noon")
        assert message.converted("messages.0") == {
            "role": "tool",
            "content": "noon",
            "name": "now",
            "tool_call_id": "call_1",
        }

    @pytest.mark.parametrize("content", ["", None, []])
    async def test_nothing_to_answer_is_refused(self, client: httpx.AsyncClient, content: object):
        assert "empty" in (await refused(client, [{"role": "user", "content": content}]))["message"]


class TestBodies:
    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[]", b'"a"', b"null", b"\xff", b'{"model": "json", "messages": ' + b"[" * 9999],
    )
    async def test_what_is_no_json_object_is_refused(self, client: httpx.AsyncClient, content: bytes):
        answer = await client.post(PATH, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"

    @pytest.mark.parametrize(
        "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; a=b"]
    )
    async def test_another_content_type_is_refused(self, client: httpx.AsyncClient, kind: str):
        body = json.dumps({"model": "json", "messages": HI})
        answer = await client.post(PATH, content=body, headers={"content-type": kind})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
        for fine in ("application/json", "application/json; charset=utf-8", "application/vnd.api+json"):
            answer = await client.post(PATH, content=body, headers={"content-type": fine})
            assert answer.status_code == 200

    async def test_a_lone_surrogate_is_refused(self, client: httpx.AsyncClient):
        body = b'{"model": "json", "messages": [{"role": "user", "content": "\\ud800"}]}'
        answer = await client.post(PATH, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400


class TestStream:
    async def test_has_openai_form(self, client: httpx.AsyncClient):
        first, *between, last = await chunks(client, max_tokens=3)
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [chunk["choices"][0]["delta"] for chunk in between] == [{"content": each} for each in "[js"]
        assert last["choices"][0]["delta"] == {}
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["adapterhub"] == {"adapter": "json", "version": 1, "route": None}
        for chunk in (first, *between, last):
            assert chunk["object"] == "chat.completion.chunk"
            assert (chunk["id"], chunk["model"]) == (first["id"], "json")
            assert "usage" not in chunk

    async def test_n_answers_have_a_first_and_a_last_chunk_each(self, client: httpx.AsyncClient):
        streamed = [chunk["choices"][0] for chunk in await chunks(client, n=2, max_tokens=3)]
        for index in (0, 1):
            first, *between, last = [choice for choice in streamed if choice["index"] == index]
            assert first["delta"]["role"] == "assistant"
            assert "".join(choice["delta"]["content"] for choice in between) == "[js"
            assert last["finish_reason"] == "length"

    async def test_usage_comes_last_if_asked_for(self, client: httpx.AsyncClient):
        *before, last = await chunks(client, n=2, stream_options={"include_usage": True})
        assert last["choices"] == []
        assert last["usage"] == (await chat(client, n=2))["usage"]
        assert {chunk["usage"] for chunk in before} == {None}

    async def test_usage_so_far_if_asked_for(self, client: httpx.AsyncClient):
        options = {"include_usage": True, "continuous_usage_stats": True}
        streamed = await chunks(client, max_tokens=3, stream_options=options)
        assert [chunk["usage"]["completion_tokens"] for chunk in streamed] == [0, 1, 2, 3, 3, 3]

    async def test_what_cannot_be_served_has_a_status(self, client: httpx.AsyncClient):
        for model, text, status in (("nobody", "Hi", 404), ("json", "a" * 9000, 400)):
            asked = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True}
            answer = await client.post(PATH, json=asked)
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/json"
