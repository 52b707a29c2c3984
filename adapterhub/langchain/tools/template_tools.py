"""The tool that renders templates."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, create_model

from adapterhub.agent_tools.templates import Language, RenderedTemplate, TemplateCollection
from adapterhub.agent_tools.templates.fields import numbers_as_text
from adapterhub.errors import ToolError
from adapterhub.langchain.tools.args_schema import Arguments
from adapterhub.langchain.tools.content_and_artifact import ContentAndArtifact, describe_error

_MAX_CONTENT = 100_000
_MAX_NAME = 64
_FieldsT = TypeVar("_FieldsT", bound=dict[str, Any])


def _check_names(fields: _FieldsT) -> _FieldsT:
    # A constrained key type becomes `propertyNames` in JSON Schema, which grammars cannot enforce.
    if any(len(name) > _MAX_NAME for name in fields):
        raise ValueError(f"a field's name has more than {_MAX_NAME} characters")
    return fields


Value = Annotated[str, StringConstraints(max_length=20_000)]
Entry = Annotated[dict[str, Value], Field(max_length=20), AfterValidator(_check_names)]
FieldArgument = (
    Value | Annotated[list[Value], Field(max_length=50)] | Annotated[list[Entry], Field(max_length=50)]
)


class TemplateArguments(Arguments):
    """The template and its fields."""

    fields: (
        Annotated[
            dict[str, FieldArgument],
            Field(max_length=50),
            AfterValidator(_check_names),
            BeforeValidator(numbers_as_text),
        ]
        | None
    ) = None
    """Values by name: a text, texts, or entries with fields."""
    language: Language = "en"
    """Of the template's own words."""


def create_template_tool(templates: TemplateCollection | None = None) -> BaseTool:
    """Creates the tool `template_generator` over a collection of templates.

    Args:
        templates: The collection; the built-in templates if not given. See `TemplateCollection.with_template`.
    """
    collection = TemplateCollection() if templates is None else templates
    names: Any = Literal[tuple(collection)]
    arguments = create_model(
        "TemplateArguments",
        __base__=TemplateArguments,
        template_type=(names, Field(description=_describe(collection))),
    )

    def generate(template_type: str, fields: Any = None, language: Language = "en") -> ContentAndArtifact:
        try:
            rendered = collection[template_type].render(fields or {}, language)
        except ToolError as error:
            return describe_error(error)
        return _content(rendered), {
            "text": rendered.text,
            "missing": list(rendered.missing),
            "unknown": list(rendered.unknown),
        }

    return StructuredTool.from_function(
        generate,
        name="template_generator",
        description="Write a text from a template and fields. Missing and unknown fields are listed.",
        args_schema=arguments,
        response_format="content_and_artifact",
    )


def _describe(templates: TemplateCollection) -> str:
    """A description of the templates and their fields for the model; optional fields are in brackets."""
    lines = (
        f"{name}{f' ({template.description})' if template.description else ''}: "
        + ", ".join([*template.required, *(f"[{field}]" for field in template.optional)])
        for name, template in templates.items()
    )
    return "\n".join(["Templates and their fields, optional ones in brackets.", *lines])


def _content(rendered: RenderedTemplate) -> str:
    text = rendered.text
    if len(text) > _MAX_CONTENT:
        text = f"{text[:_MAX_CONTENT]}\n\n[cut after {_MAX_CONTENT} characters]"
    notes = [f"[missing fields: {', '.join(rendered.missing)}]"] if rendered.missing else []
    notes += [f"[unknown fields: {', '.join(rendered.unknown)}]"] if rendered.unknown else []
    return "\n\n".join([text, *notes])


template_generator = create_template_tool()
"""The tool over the built-in templates."""
