"""Prompts of chat front ends for titles, tags and follow-up questions, to `auto`."""

from collections.abc import AsyncIterator

import httpx
import pytest

from adapterhub import AdapterHub
from adapterhub.server import ServerConfig, create_app
from adapterhub.server.generating.helper_prompts import is_helper_prompt

# In the form of Open WebUI's and LibreChat's, in other words.
QUOTED = "USER: my printer is broken\nASSISTANT: Which printer?"
TITLE = (
    '### Task:\nName this chat in 3-5 words.\n### Guidelines:\n- Be clear.\n### Output:\nJSON: {"title": "..."}\n'
    f"### Chat History:\n<chat_history>\n{QUOTED}\n</chat_history>"
)
TAGS = f"### Task:\nFind 1-3 tags.\n\n### Output:\nJSON\n\n### Chat History:\n<chat_history>\n{QUOTED}\n</chat_history>"
SHORT_TITLE = f"Please write a concise, 5-word-or-less title for this conversation:\n{QUOTED}"
HELPERS = [TITLE, TAGS, SHORT_TITLE]
PEOPLE = [
    "my printer is broken",
    "### Task:\nMy printer is broken, please help.",
    "What does <chat_history> mean?",
    "Write a title for a chat about printers.",
]


@pytest.fixture
async def lenient(hub: AdapterHub) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(hub, ServerConfig(helper_prompts="base")))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


async def ask(client: httpx.AsyncClient, text: str, model: str = "auto", **fields: object) -> httpx.Response:
    messages = [{"role": "user", "content": text}]
    return await client.post("/v1/chat/completions", json={"model": model, "messages": messages, **fields})


@pytest.mark.parametrize("text", HELPERS)
class TestHelperPrompts:
    async def test_go_to_the_base_if_told_to(self, lenient: httpx.AsyncClient, text: str):
        for stream in (False, True):
            answer = await ask(lenient, text, stream=stream)
            assert answer.headers["x-adapterhub-adapter"] == "base"
            assert "x-adapterhub-route" not in answer.headers

    async def test_in_responses_too(self, lenient: httpx.AsyncClient, text: str):
        answer = await lenient.post("/v1/responses", json={"model": "auto", "input": text})
        assert answer.headers["x-adapterhub-adapter"] == "base"

    async def test_are_routed_by_default(self, client: httpx.AsyncClient, text: str):
        assert "x-adapterhub-route" in (await ask(client, text)).headers

    async def test_go_to_the_adapter_that_is_named(self, lenient: httpx.AsyncClient, text: str):
        assert (await ask(lenient, text, "json")).headers["x-adapterhub-adapter"] == "json"

    def test_are_known_as_the_last_message_alone(self, text: str):
        helper = {"role": "user", "content": text}
        assert is_helper_prompt([{"role": "user", "content": "Hi"}, helper])
        assert not is_helper_prompt([helper, {"role": "assistant", "content": "A title"}])
        assert not is_helper_prompt([helper, {"role": "user", "content": "And now?"}])


@pytest.mark.parametrize("text", PEOPLE)
async def test_what_people_write_is_routed(lenient: httpx.AsyncClient, text: str):
    assert "x-adapterhub-route" in (await ask(lenient, text)).headers


async def test_the_question_itself_is_answered_as_before(lenient: httpx.AsyncClient):
    assert (await ask(lenient, "my printer is broken")).headers["x-adapterhub-adapter"] == "support"


def test_no_messages_are_no_helper_prompt():
    assert not is_helper_prompt([])
