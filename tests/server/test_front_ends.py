"""Requests as chat front ends and editors send them: a strict server must not break them."""

import json
from typing import Any

import httpx
import pytest

MESSAGES = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "LibreChat": {
        "temperature": 1,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "user": "65f0c3",
        "stream": True,
    },
    "Open WebUI": {
        "stream": True,
        "temperature": 0.8,
        "top_p": 0.9,
        "min_p": 0.0,
        "max_tokens": 128,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "seed": 0,
        "stop": ["<|end|>"],
        "logit_bias": {},
        "stream_options": {"include_usage": True},
        "metadata": {"chat_id": "1"},
    },
    "Continue": {
        "max_tokens": 64,
        "temperature": 0.2,
        "top_p": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "stream": True,
        "stop": ["</s>"],
    },
    "llm": {
        "stream": True,
        "stream_options": {"include_usage": True},
        "logit_bias": {"50": 1},
        "seed": 7,
        "stop": "x",
    },
    "openai with every null": {
        "audio": None,
        "frequency_penalty": None,
        "functions": None,
        "logit_bias": None,
        "logprobs": None,
        "max_completion_tokens": None,
        "max_tokens": None,
        "n": None,
        "prediction": None,
        "reasoning_effort": None,
        "seed": None,
        "service_tier": None,
        "stop": None,
        "stream": None,
        "stream_options": None,
        "top_logprobs": None,
        "web_search_options": None,
    },
    "openai's defaults in full": {
        "frequency_penalty": 0,
        "logit_bias": {},
        "logprobs": False,
        "modalities": ["text"],
        "n": 1,
        "parallel_tool_calls": True,
        "presence_penalty": 0,
        "response_format": {"type": "text"},
        "service_tier": "auto",
        "store": False,
        "stream": False,
        "temperature": 1,
        "top_logprobs": 0,
        "top_p": 1,
        "verbosity": "medium",
    },
}


@pytest.mark.parametrize("front_end", BODIES)
async def test_is_answered(client: httpx.AsyncClient, front_end: str):
    body = {"model": "json", "messages": MESSAGES, **BODIES[front_end]}
    headers = {"authorization": "Bearer any", "api-key": "any"}  # Continue sends both
    answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert text_of(answer).startswith("[json@1] ### Instruction:\nHi")


def text_of(answer: httpx.Response) -> str:
    """The answer's text, whole or streamed."""
    if answer.headers["content-type"] == "application/json":
        return answer.json()["choices"][0]["message"]["content"]
    frames = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert frames.pop() == "[DONE]"
    choices = [choice for frame in frames for choice in json.loads(frame)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)
