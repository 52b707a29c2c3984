"""LangChain's own tests, for every tool."""

from pathlib import Path
from typing import ClassVar

import pytest
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.langchain.tools import (
    content_validator,
    create_list_adapters_tool,
    create_route_request_tool,
    template_generator,
    text_formatter,
)


class Formatter:
    tool_constructor = text_formatter
    tool_invoke_params_example: ClassVar = {"text": "One two. Раз два.", "width": 12, "align": "justify"}


class Generator:
    tool_constructor = template_generator
    tool_invoke_params_example: ClassVar = {
        "template_type": "prompt",
        "fields": {"instruction": "Hi"},
        "language": "ru",
    }


class Validator:
    tool_constructor = content_validator
    tool_invoke_params_example: ClassVar = {
        "text": "x",
        "rules": [{"rule": "not_empty"}, {"rule": "regex", "pattern": "y"}],
    }


class OfAHub:
    @pytest.fixture(autouse=True)
    def _hub(self, tiny_registry: Path) -> None:
        self.hub = AdapterHub(EchoEngine(), AdapterRegistry(tiny_registry))


class Lister(OfAHub):
    @property
    def tool_constructor(self) -> BaseTool:
        return create_list_adapters_tool(self.hub)

    tool_invoke_params_example: ClassVar = {"contains": "j", "limit": 2}


class Router(OfAHub):
    @property
    def tool_constructor(self) -> BaseTool:
        return create_route_request_tool(self.hub)

    tool_invoke_params_example: ClassVar = {"text": "write a python function"}


class TestFormatterUnit(Formatter, ToolsUnitTests): ...


class TestFormatter(Formatter, ToolsIntegrationTests): ...


class TestGeneratorUnit(Generator, ToolsUnitTests): ...


class TestGenerator(Generator, ToolsIntegrationTests): ...


class TestValidatorUnit(Validator, ToolsUnitTests): ...


class TestValidator(Validator, ToolsIntegrationTests): ...


class TestListerUnit(Lister, ToolsUnitTests): ...


class TestLister(Lister, ToolsIntegrationTests): ...


class TestRouterUnit(Router, ToolsUnitTests): ...


class TestRouter(Router, ToolsIntegrationTests): ...
