"""The public names of `adapterhub.langchain`, its tools, and `adapterhub.agent_tools`."""

import importlib

import pytest

FACES = {
    "adapterhub.langchain": {"AdapterHubLLM", "AdapterToolkit", "ChatAdapterHub", "huggingface_pipeline"},
    "adapterhub.langchain.tools": {
        "AdapterToolkit", "content_validator", "create_list_adapters_tool", "create_route_request_tool",
        "create_template_tool", "template_generator", "text_formatter",
    },
    "adapterhub.agent_tools": {
        "RenderedTemplate", "Rule", "RuleResult", "Template", "TemplateCollection", "TextLayout", "ValidationReport",
        "display_width", "format_text", "validate_text",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FACES)
def test_public_names(name: str):
    face = importlib.import_module(name)
    assert set(face.__all__) == FACES[name]
    for public in FACES[name]:
        assert getattr(face, public).__class__.__name__ != "module"
