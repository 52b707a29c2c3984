"""LangChain's own integration tests, through langchain-openai at a real server, on random weights."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_core.exceptions import OutputParserException
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from pydantic import ValidationError

from adapterhub import AdapterHub
from adapterhub.server import create_app
from tests.server.live import live

NOT_KEPT = httpx.Limits(max_keepalive_connections=0)
DEPENDS_ON_WEIGHTS = "random weights cannot choose a call, nor copy what the question says into its arguments"

JSON_MODE = "OpenAI's JSON mode asks for any object, without the schema, which random weights do not know"

pytestmark = [  # of the client, which also speaks them to OpenAI
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema:UserWarning"),
]


@pytest.fixture(scope="module")
def url(model_hub: AdapterHub) -> Iterator[str]:
    with live(create_app(model_hub)) as url:
        yield f"{url}/v1"


class _Suite(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _with_url(self, url: str) -> Iterator[None]:
        self._url = url
        # The model keeps its clients open: without idle connections, they leave no socket behind.
        with httpx.Client(limits=NOT_KEPT, timeout=60) as client:
            self._clients = {
                "http_client": client,
                "http_async_client": httpx.AsyncClient(limits=NOT_KEPT, timeout=60),
            }
            yield

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Random weights talk until they may no longer; the longest call that a test needs takes 95 tokens here.
        return {
            "model": "json",
            "base_url": self._url,
            "api_key": "none",
            "max_tokens": 96,
            "stream_usage": True,
            "max_retries": 0,
            **self._clients,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "base"

    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    @pytest.mark.xfail(reason=DEPENDS_ON_WEIGHTS, strict=True, raises=AssertionError)
    def test_tool_calling(self, model: ChatOpenAI) -> None:
        super().test_tool_calling(model)

    @pytest.mark.xfail(reason=DEPENDS_ON_WEIGHTS, strict=True, raises=AssertionError)
    async def test_tool_calling_async(self, model: ChatOpenAI) -> None:
        await super().test_tool_calling_async(model)

    @pytest.mark.xfail(reason=DEPENDS_ON_WEIGHTS, strict=True, raises=AssertionError)
    def test_unicode_tool_call_integration(self, model: ChatOpenAI, **_: Any) -> None:
        super().test_unicode_tool_call_integration(model)

    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    @pytest.mark.xfail(reason=DEPENDS_ON_WEIGHTS, strict=True, raises=AssertionError)
    def test_agent_loop(self, model: ChatOpenAI) -> None:
        super().test_agent_loop(model)

    def test_json_mode_gives_an_object(self, model: ChatOpenAI) -> None:
        answer = model.bind(response_format={"type": "json_object"}).invoke("A joke as JSON, please.")
        assert isinstance(json.loads(answer.text), dict)

    @pytest.mark.xfail(reason=JSON_MODE, strict=True, raises=(OutputParserException, ValidationError))
    def test_json_mode(self, model: ChatOpenAI) -> None:
        super().test_json_mode(model)


class TestChatCompletions(_Suite):
    pass


@pytest.mark.slow
class TestResponses(_Suite):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "use_responses_api": True}
