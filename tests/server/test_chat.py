"""`/v1/chat/completions` on an engine whose answer is `[adapter] prompt`."""

import json

import httpx

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


def events(text: str) -> list[dict[str, object] | str]:
    frames = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [frame if frame == "[DONE]" else json.loads(frame) for frame in frames]


class TestAnswer:
    async def test_has_openai_form(self, client: httpx.AsyncClient):
        answer = await client.post(PATH, json={"model": "json", "messages": HI, "max_tokens": 9})
        body = answer.json()
        assert answer.status_code == 200
        assert body["object"] == "chat.completion"
        assert body["model"] == "json"
        assert body["choices"][0]["message"] == {"role": "assistant", "content": "[json@1] ", "refusal": None}
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 9

    async def test_stream_has_the_same_text(self, client: httpx.AsyncClient):
        asked = {"model": "json", "messages": HI, "max_tokens": 9, "stream": True}
        answer = await client.post(PATH, json=asked)
        *chunks, done = events(answer.text)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert done == "[DONE]"
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text == "[json@1] "
