"""The tool that fills in templates."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import AfterValidator, Field, StringConstraints, create_model

from adapterhub.agent_tools.templates import Language, Rendered, Templates
from adapterhub.langchain.tools.arguments import Arguments

_MOST_WRITTEN = 100_000
_LONGEST_NAME = 64
_Named = TypeVar("_Named", bound=dict[str, Any])


def _short_names(fields: _Named) -> _Named:
    # A type for the keys would say the same, but grammars cannot enforce the `propertyNames` that it makes.
    if any(len(name) > _LONGEST_NAME for name in fields):
        raise ValueError(f"a field's name has more than {_LONGEST_NAME} characters")
    return fields


Value = Annotated[str, StringConstraints(max_length=20_000)]
Entry = Annotated[dict[str, Value], Field(max_length=20), AfterValidator(_short_names)]
FieldArgument = (
    Value | Annotated[list[Value], Field(max_length=50)] | Annotated[list[Entry], Field(max_length=50)]
)


class TemplateArguments(Arguments):
    """Which template, and what to fill in."""

    fields: Annotated[dict[str, FieldArgument], Field(max_length=50), AfterValidator(_short_names)] | None = (
        None
    )
    """Values by name: a text, a list of texts, or a list of entries that have fields themselves."""
    language: Language = "en"
    """The language of the template's own words."""


def template_tool(templates: Templates | None = None) -> BaseTool:
    """The tool `template_generator` over a set of templates.

    Args:
        templates: What it offers; the package's own if not given. See `Templates.with_template`.
    """
    known = Templates() if templates is None else templates
    choice: Any = Literal[tuple(known)]
    arguments = create_model(
        "TemplateArguments",
        __base__=TemplateArguments,
        template_type=(choice, Field(description=_choices(known))),
    )

    def generate(
        template_type: str, fields: Any = None, language: Language = "en"
    ) -> tuple[str, dict[str, Any]]:
        rendered = known[template_type].render(fields or {}, language)
        return _told(rendered), {
            "text": rendered.text,
            "missing": list(rendered.missing),
            "unknown": list(rendered.unknown),
        }

    return StructuredTool.from_function(
        generate,
        name="template_generator",
        description="Write a text from a template and fields. Fields that are missing or unknown are named after it.",
        args_schema=arguments,
        response_format="content_and_artifact",
    )


def _choices(templates: Templates) -> str:
    """The templates and their fields, for whoever chooses one; those in brackets may be left out."""
    lines = (
        f"{name}: {template.description or 'a text'}; fields "
        + ", ".join([*template.required, *(f"[{field}]" for field in template.optional)])
        for name, template in templates.items()
    )
    return "\n".join(["Which template.", *lines])


def _told(rendered: Rendered) -> str:
    text = rendered.text
    if len(text) > _MOST_WRITTEN:
        text = f"{text[:_MOST_WRITTEN]}\n\n[cut after {_MOST_WRITTEN} characters]"
    notes = [f"[missing fields: {', '.join(rendered.missing)}]"] if rendered.missing else []
    notes += [f"[unknown fields: {', '.join(rendered.unknown)}]"] if rendered.unknown else []
    return "\n\n".join([text, *notes])


template_generator = template_tool()
"""The tool over the package's own templates."""
