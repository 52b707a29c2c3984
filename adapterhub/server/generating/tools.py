"""The tools of a request, and which of them an answer may call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from adapterhub.server.errors import FieldError
from adapterhub.server.protocol.responses import ResponseToolChoice
from adapterhub.server.protocol.tools import Function, ToolChoiceOption
from adapterhub.tool_calling import ToolChoice

_DESCRIBED = {"name", "description", "parameters"}


def functions_of(functions: Iterable[Function]) -> list[dict[str, Any]]:
    """Functions as `ToolChoice` takes them, without what has no effect.

    Raises:
        FieldError: Two have one name.
    """
    described = [function.model_dump(include=_DESCRIBED, exclude_none=True) for function in functions]
    names = [function["name"] for function in described]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise FieldError(f"Two tools have the name {twice!r}.", "tools", hint="Give each its own.")
    return [{"type": "function", "function": function} for function in described]


def tool_choice_of(
    functions: Sequence[dict[str, Any]],
    choice: ToolChoiceOption | ResponseToolChoice | None,
    parallel: bool | None,
) -> ToolChoice:
    """The functions that an answer may or must call.

    Args:
        functions: All functions.
        choice: The request's `tool_choice`.
        parallel: Whether one answer may call several; None is true.

    Raises:
        FieldError: A function is not among them, or there are none to call.
    """
    parallel = parallel is not False
    if choice is None or isinstance(choice, str):
        if choice == "required" and not functions:
            raise FieldError("tool_choice is 'required', and there are no tools.", "tool_choice")
        return ToolChoice.of(functions, choice, parallel)
    chosen, by_name = choice.chosen(), {function["function"]["name"]: function for function in functions}
    unknown = sorted(set(chosen.names) - by_name.keys())
    if unknown:
        known = ", ".join(by_name) or "none"
        raise FieldError(f"There is no tool {unknown[0]!r}.", "tool_choice", hint=f"Tools: {known:.500}.")
    allowed = [by_name[name] for name in dict.fromkeys(chosen.names)]
    return ToolChoice.of(allowed, chosen.mode, parallel and not chosen.single)
