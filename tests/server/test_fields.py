"""Every field of the bodies: honoured, accepted where it is neutral, ignored openly, or refused."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from adapterhub import AdapterHub, EchoEngine
from adapterhub.engine.interface import Request
from adapterhub.server import ServerConfig, create_app
from adapterhub.server.protocol.chat import ChatCompletionRequest
from adapterhub.server.protocol.completions import CompletionRequest
from adapterhub.server.protocol.fields import ELSEWHERE, IGNORED, NEUTRAL, REFUSED
from adapterhub.server.protocol.output_formats import FormattedBody
from adapterhub.server.protocol.sampling import GenerationBody

CHAT = {"model": "json", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "json", "prompt": "Hi"}
PATHS = {"/v1/chat/completions": CHAT, "/v1/completions": TEXT}

SAMPLING = {
    "max_tokens": (5, 5),
    "temperature": (0.5, 0.5),
    "top_p": (0.9, 0.9),
    "top_k": (7, 7),
    "min_p": (0.1, 0.1),
    "repetition_penalty": (1.5, 1.5),
    "frequency_penalty": (0.5, 0.5),
    "presence_penalty": (-0.5, -0.5),
    "logit_bias": ({"65": 2}, {65: 2.0}),
    "bad_words": (["no"], ("no",)),
    "min_tokens": (2, 2),
    "stop_token_ids": ([66], (66,)),
    "ignore_eos": (True, True),
    "seed": (3, 3),
    "n": (2, 2),
}
"""Fields of both bodies -> a value, and the same in `SamplingParams`."""
OTHERS = {
    *("model", "stream", "stream_interval", "stream_options", "stop", "priority"),
    *("user", "safety_identifier"),  # test_alias_routes.py
}
"""Fields of both bodies that have tests of their own."""


class RecordingEngine(EchoEngine):
    """Keeps the requests that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    async def agenerate(self, requests: Any) -> Any:
        """Records, and answers."""
        self.requests += requests
        return await super().agenerate(requests)


@pytest.fixture(scope="module")
def engine() -> RecordingEngine:
    return RecordingEngine()


@pytest.fixture(scope="module")
def app(hub: AdapterHub, engine: RecordingEngine) -> Iterator[FastAPI]:
    with AdapterHub(engine, hub.registry) as recorded:
        yield create_app(recorded)


async def sent(client: httpx.AsyncClient, engine: RecordingEngine, path: str, **fields: object) -> Request:
    answer = await client.post(path, json={**PATHS[path], **fields})
    assert answer.status_code == 200, answer.text
    return engine.requests[-1]


async def refused(client: httpx.AsyncClient, path: str, **fields: object) -> dict[str, Any]:
    answer = await client.post(path, json={**PATHS[path], **fields})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize("path", PATHS)
class TestHonoured:
    @pytest.mark.parametrize("name", SAMPLING)
    async def test_reaches_the_engine(
        self, client: httpx.AsyncClient, engine: RecordingEngine, path: str, name: str
    ):
        value, expected = SAMPLING[name]
        request = await sent(client, engine, path, **{name: value})
        assert getattr(request.sampling, name) == expected

    @pytest.mark.parametrize(("stop", "expected"), [("a", {"a"}), (["a", "b"], {"a", "b"})])
    async def test_stop_is_a_text_or_a_list(
        self, client: httpx.AsyncClient, engine: RecordingEngine, path: str, stop: object, expected: set[str]
    ):
        request = await sent(client, engine, path, stop=stop)
        assert expected <= set(request.sampling.stop)

    async def test_a_higher_priority_is_a_higher_one(
        self, client: httpx.AsyncClient, engine: RecordingEngine, path: str
    ):
        assert (await sent(client, engine, path, priority=5)).priority == 5

    async def test_the_seed_minus_one_is_as_if_not_sent(
        self, client: httpx.AsyncClient, engine: RecordingEngine, path: str
    ):
        assert (await sent(client, engine, path, seed=-1)).sampling.seed is None
        assert (await refused(client, path, seed=-2))["param"] == "seed"

    @pytest.mark.parametrize("name", sorted({*SAMPLING, "stop", "priority", "stream_options"}))
    async def test_null_is_as_if_not_sent(
        self, client: httpx.AsyncClient, engine: RecordingEngine, path: str, name: str
    ):
        without = await sent(client, engine, path)
        assert await sent(client, engine, path, **{name: None}) == without

    @pytest.mark.parametrize(
        "name", ["max_tokens", "temperature", "top_p", "n", "frequency_penalty", "logit_bias"]
    )
    async def test_a_value_out_of_range_is_named(self, client: httpx.AsyncClient, path: str, name: str):
        value = {"0": 1000} if name == "logit_bias" else -3
        error = await refused(client, path, **{name: value})
        assert (error["param"], error["code"]) == (name, "invalid_value")

    async def test_a_value_of_another_type_is_named(self, client: httpx.AsyncClient, path: str):
        error = await refused(client, path, max_tokens="many")
        assert error["param"] == "max_tokens"
        assert "many" not in error["message"]


class TestChatOnly:
    async def test_max_completion_tokens_wins(self, client: httpx.AsyncClient, engine: RecordingEngine):
        request = await sent(client, engine, "/v1/chat/completions", max_tokens=5, max_completion_tokens=6)
        assert request.sampling.max_tokens == 6

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, None),
            ({"logprobs": False}, None),
            ({"logprobs": True}, 0),
            ({"logprobs": True, "top_logprobs": 3}, 3),
        ],
    )
    async def test_logprobs(
        self,
        client: httpx.AsyncClient,
        engine: RecordingEngine,
        fields: dict[str, object],
        expected: int | None,
    ):
        request = await sent(client, engine, "/v1/chat/completions", **fields)
        assert request.sampling.logprobs == expected

    async def test_a_new_message_and_the_last_one_cannot_both_be_written(self, client: httpx.AsyncClient):
        both = {"add_generation_prompt": True, "continue_final_message": True}
        assert "continue_final_message" in (await refused(client, "/v1/chat/completions", **both))["message"]

    async def test_top_logprobs_alone_is_refused(self, client: httpx.AsyncClient):
        error = await refused(client, "/v1/chat/completions", top_logprobs=3)
        assert error["param"] == "top_logprobs"

    async def test_the_last_message_is_continued(self, client: httpx.AsyncClient, engine: RecordingEngine):
        begun = [*CHAT["messages"], {"role": "assistant", "content": "One, "}]
        request = await sent(
            client, engine, "/v1/chat/completions", messages=begun, continue_final_message=True
        )
        prompt = engine.tokenizer.decode(request.prompt)
        assert prompt.endswith("### Response:\nOne, ")
        request = await sent(
            client, engine, "/v1/chat/completions", messages=begun, add_generation_prompt=False
        )
        assert engine.tokenizer.decode(request.prompt) == prompt, "there is no end token"

    async def test_variables_of_the_chat_template_are_checked(
        self, client: httpx.AsyncClient, engine: RecordingEngine
    ):
        path = "/v1/chat/completions"
        await sent(client, engine, path, chat_template_kwargs={"enable_thinking": False})
        for wrong in ({"messages": []}, {"a b": 1}, {"a": "x" * 20_000}):
            error = await refused(client, path, chat_template_kwargs=wrong)
            assert error["code"] == "invalid_value"
            assert "chat_template_kwargs" in error["message"]


class TestCompletionsOnly:
    async def test_logprobs_is_a_number(self, client: httpx.AsyncClient, engine: RecordingEngine):
        assert (await sent(client, engine, "/v1/completions", logprobs=4)).sampling.logprobs == 4

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"logprobs": 1}, None),
            ({"echo": True}, None),
            ({"echo": True, "logprobs": 1}, 1),
            ({"echo": True, "logprobs": 0}, 0),
            ({"prompt_logprobs": 4}, 4),
            ({"echo": True, "logprobs": 1, "prompt_logprobs": 4}, 4),
            ({"echo": True, "logprobs": 5, "prompt_logprobs": 0}, 5),
        ],
    )
    def test_log_probabilities_of_the_prompt(self, fields: dict[str, object], expected: int | None):
        options = CompletionRequest.model_validate({**TEXT, **fields}).options()
        assert options.get("prompt_logprobs") == expected

    @pytest.mark.parametrize("path", PATHS)
    async def test_they_are_not_streamed_in_a_list_of_their_own(self, client: httpx.AsyncClient, path: str):
        error = await refused(client, path, prompt_logprobs=0, stream=True)
        assert error["param"] == "prompt_logprobs"
        assert "stream" in error["message"]

    async def test_no_token_at_all_is_for_an_echo_alone(
        self, client: httpx.AsyncClient, engine: RecordingEngine
    ):
        request = await sent(client, engine, "/v1/completions", echo=True, max_tokens=0)
        assert request.sampling.max_tokens == 1
        error = await refused(client, "/v1/completions", max_tokens=0)
        assert "max_tokens" in error["message"]


@pytest.mark.parametrize("path", PATHS)
class TestNotHonoured:
    @pytest.mark.parametrize("name", sorted(IGNORED))
    async def test_what_has_no_effect_is_named_in_a_header(
        self, client: httpx.AsyncClient, path: str, name: str
    ):
        answer = await client.post(path, json={**PATHS[path], name: "x"})
        assert answer.status_code == 200
        assert answer.headers["x-adapterhub-ignored"] == name

    @pytest.mark.parametrize("name", sorted(NEUTRAL))
    async def test_a_neutral_value_is_accepted_and_another_refused(
        self, client: httpx.AsyncClient, path: str, name: str
    ):
        for value in (None, *NEUTRAL[name]):
            answer = await client.post(path, json={**PATHS[path], name: value})
            assert answer.status_code == 200, value
        error = await refused(client, path, **{name: "another"})
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")

    @pytest.mark.parametrize("name", sorted(REFUSED))
    async def test_what_is_refused_says_what_to_do(self, client: httpx.AsyncClient, path: str, name: str):
        error = await refused(client, path, **{name: {"some": "value"}})
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
        assert error["message"].endswith(REFUSED[name])
        assert (await client.post(path, json={**PATHS[path], name: None})).status_code == 200

    async def test_an_unknown_name_is_refused_with_a_near_one(self, client: httpx.AsyncClient, path: str):
        error = await refused(client, path, temprature=1)
        assert (error["param"], error["code"]) == ("temprature", "unknown_parameter")
        assert "Did you mean 'temperature'?" in error["message"]

    async def test_unknown_names_may_be_ignored_openly(self, hub: AdapterHub, path: str):
        app = create_app(hub, ServerConfig(unknown_fields="ignore"))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as lenient:
            answer = await lenient.post(path, json={**PATHS[path], "zeal": 1, "session_id": "me"})
            assert answer.headers["x-adapterhub-ignored"] == "session_id, zeal"
            assert (await lenient.post(path, json={**PATHS[path], "audio": {}})).status_code == 400
            odd = {"a\r\nset-cookie: b": 1, "имя": 1, "x" * 101: 1, **{f"f{n:02}": 1 for n in range(99)}}
            answer = await lenient.post(path, json={**PATHS[path], **odd})
            assert answer.status_code == 200
            assert answer.headers["x-adapterhub-ignored"].split(", ") == [f"f{n:02}" for n in range(32)]
            answer = await lenient.post(path, json={**PATHS[path], **{f"f{n}": None for n in range(300)}})
            assert answer.status_code == 400
            assert "more than 256 fields" in answer.json()["error"]["message"]


RESPONSE = {"model": "json", "input": "Hi"}
MISPLACED = [
    *(("/v1/responses", name) for name in sorted(ELSEWHERE.keys() - {"tools", "tool_choice"})),
    *(("/v1/completions", name) for name in ("chat_template_kwargs", "tools", "tool_choice")),
]


@pytest.mark.parametrize(("path", "name"), MISPLACED)
async def test_no_constraint_of_another_path_is_dropped(hub: AdapterHub, path: str, name: str):
    """Not even where unknown fields are ignored: the answer would look as if it had been held."""
    body = RESPONSE if path == "/v1/responses" else TEXT
    transport = httpx.ASGITransport(create_app(hub, ServerConfig(unknown_fields="ignore")))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as lenient:
        answer = await lenient.post(path, json={**body, name: {"type": "object"}})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, name, "unsupported_parameter")


def test_every_field_of_both_bodies_has_a_test():
    both = set(ChatCompletionRequest.model_fields) & set(CompletionRequest.model_fields)
    formats = set(FormattedBody.model_fields) - set(GenerationBody.model_fields)  # test_output_formats.py
    assert both - {*SAMPLING, *OTHERS, "logprobs", "prompt_logprobs"} == formats


def test_the_rules_are_disjoint():
    for body in (ChatCompletionRequest, CompletionRequest):
        names = [*body.model_fields, *IGNORED, *NEUTRAL, *REFUSED]
        assert len(set(names)) == len(names)
