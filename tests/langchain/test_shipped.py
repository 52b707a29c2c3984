"""LangChain's own integration tests, for the chat model on the shipped base with its `tools` adapter.

Nothing is marked as a failure here: this adapter can choose a call and copy what the question says.
"""

from typing import Any

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests

from adapterhub import AdapterHub
from adapterhub.langchain import ChatAdapterHub


class TestShippedTools(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _with_hub(self, shipped_hub: AdapterHub) -> None:
        self._hub = shipped_hub

    @property
    def chat_model_class(self) -> type[ChatAdapterHub]:
        return ChatAdapterHub

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Small talk is none of its trade, and would go on for long.
        return {"hub": self._hub, "model": "tools", "max_tokens": 64}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "base"
