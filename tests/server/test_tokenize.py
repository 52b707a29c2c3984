"""`/tokenize` and `/detokenize`: the token ids that a request for an answer has."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.base import load_base
from adapterhub.engine import BatchingEngine
from tests.server.admin import ANY, JSON_ONLY, Served, served, write_keys

MESSAGES = [{"role": "user", "content": "Hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
}


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_registry: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tokenize")
    engine = BatchingEngine(load_base(str(tiny_base), quantization=None), prove_base=False)
    with served(tiny_registry, {}, folder, engine, **write_keys(folder)) as server:
        yield server


def tokenize(server: Served, key: str = ANY, **body: object):
    return server.call("POST", "/tokenize", key, json=body)


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_a_text(server: Served, add_special_tokens: bool):
    answer = tokenize(server, prompt="the quick fox", add_special_tokens=add_special_tokens).json()
    tokenizer = server.hub.engine.tokenizer
    assert answer == {
        "count": len(answer["tokens"]),
        "max_model_len": server.hub.engine.context_length,
        "tokens": list(tokenizer.encode("the quick fox", add_special_tokens=add_special_tokens)),
    }
    back = server.call("POST", "/detokenize", ANY, json={"tokens": answer["tokens"]})
    assert back.json() == {"prompt": "the quick fox"}


@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_a_conversation_has_the_tokens_of_a_chat_request(server: Served, tools: list[object] | None):
    body = {"model": "json", "messages": MESSAGES, "tools": tools}
    counted = tokenize(server, **body).json()["count"]
    answered = server.call(
        "POST", "/v1/chat/completions", ANY, json={**body, "tool_choice": None, "max_tokens": 8}
    )
    if tools is None:
        assert answered.json()["usage"]["prompt_tokens"] == counted
        assert tokenize(server, **body, add_generation_prompt=False).json()["count"] < counted
    else:
        assert counted > tokenize(server, model="json", messages=MESSAGES).json()["count"]


def test_the_text_of_each_token(server: Served):
    answer = tokenize(server, prompt="the quick fox", add_special_tokens=False, return_token_strs=True).json()
    assert "".join(answer["token_strs"]) == "the quick fox"
    assert len(answer["token_strs"]) == answer["count"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "x", "messages": MESSAGES},
        {"messages": []},
        {"messages": MESSAGES * 10_001},
        {"text": "x"},
    ],
)
def test_a_wrong_body_is_a_400(server: Served, body: dict[str, object]):
    assert tokenize(server, **body).status_code == 400


@pytest.mark.parametrize("tokens", [[2**31], [10**6], [-1], ["x"], None])
def test_tokens_that_cannot_be_are_a_400(server: Served, tokens: object):
    assert server.call("POST", "/detokenize", ANY, json={"tokens": tokens}).status_code == 400


@pytest.mark.parametrize("model", ["code", "nope", "json+code"])
def test_an_adapter_that_does_not_exist_for_the_key_is_not_found(server: Served, model: str):
    for body in ({"prompt": "x"}, {"messages": MESSAGES}):
        assert tokenize(server, JSON_ONLY, model=model, **body).status_code == 404
    assert (
        server.call("POST", "/detokenize", JSON_ONLY, json={"model": model, "tokens": [1]}).status_code == 404
    )


def test_auto_is_the_adapter_that_the_router_would_choose(server: Served):
    messages = [{"role": "user", "content": "write a python function"}]
    assert tokenize(server, model="auto", messages=messages).status_code == 200
