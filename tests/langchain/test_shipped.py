"""LangChain's own integration tests, for the chat model on the shipped base with its `tools` adapter.

Nothing is marked as a failure here: this adapter can choose a call and copy what the question says. What random weights
can do as well is tested with them in every run, and here in the slow ones.
"""

from typing import Any

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests.chat_models import ChatModelTests

from adapterhub import AdapterHub
from tests.langchain.helpers import ChatSuite


class OnShippedTools(ChatSuite):
    @pytest.fixture(autouse=True)
    def _with_hub(self, shipped_hub: AdapterHub) -> None:
        self._hub = shipped_hub

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Small talk is none of its trade, and would go on for long.
        return {"hub": self._hub, "model": "tools", "max_tokens": 64}


class TestWhatNeedsACapableModel(OnShippedTools, ChatModelTests):
    test_tool_calling = ChatModelIntegrationTests.test_tool_calling
    test_tool_calling_async = ChatModelIntegrationTests.test_tool_calling_async
    test_unicode_tool_call_integration = ChatModelIntegrationTests.test_unicode_tool_call_integration
    test_agent_loop = ChatModelIntegrationTests.test_agent_loop


@pytest.mark.slow
class TestEverything(OnShippedTools, ChatModelIntegrationTests):
    pass
