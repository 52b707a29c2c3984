"""The format of tool calls.

Most chat templates write a call as a few fixed texts around a name and the arguments' JSON:

    <tool_call>\\n{"name": "add", "arguments": {"a": 1}}\\n</tool_call>              Hermes, Qwen
    {"name": "add", "parameters": {"a": 1}}                                        Llama 3.1
    [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "9DrSyYMbp"}]       Mistral v3
    [TOOL_CALLS]add[ARGS]{"a": 1}                                                  Mistral v13
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

CallField: TypeAlias = Literal["name", "arguments", "id"]
CALL, CALL_END = "<tool_call>", "</tool_call>"
ID_LENGTH = 9
"""Letters and digits of a call's id in templates that render ids: Mistral's accept no other."""


@dataclass(frozen=True)
class ToolCallFormat:
    """The fixed texts around the fields of tool calls: prefix, call, call separator, call, ..., suffix.

    Attributes:
        prefix: The text before the first field of the first call.
        fields: The fields of a call, in order.
        separators: The texts between the fields of a call.
        suffix: The text after the last field of the last call.
        call_separator: The text between two calls; None if an answer may contain one call only.
        content_separator: The white space between an answer's text and the prefix.
        arguments_as_string: Whether the template expects arguments as a string of JSON, not as an object.
    """

    prefix: str
    fields: tuple[CallField, ...]
    separators: tuple[str, ...]
    suffix: str
    call_separator: str | None = None
    content_separator: str = ""
    arguments_as_string: bool = False

    @property
    def start_marker(self) -> str:
        """What distinguishes calls from text: the prefix up to its JSON, or all of it if that part has no letters."""
        before_json = self.prefix.partition("{")[0].rstrip()
        return before_json if any(map(str.isalnum, before_json)) else self.prefix

    @property
    def only_at_start(self) -> bool:
        """Whether calls are recognised only at the start of an answer, so that no text can precede them."""
        return "{" in self.start_marker

    @property
    def quotes_name(self) -> bool:
        """Whether names are JSON strings."""
        return self._around_name()[0].endswith('"')

    @property
    def is_parsable(self) -> bool:
        """Whether the starts of calls and the ends of names can be found, and nothing is escaped for HTML."""
        before, after = self._around_name()
        ends = after.startswith('"') if before.endswith('"') else after and self.fields[-1] != "name"
        # Some templates escape quotation marks where arguments are an object.
        return bool(self.prefix.strip() and ends) and "&#" not in before + after

    def _around_name(self) -> tuple[str, str]:
        index = self.fields.index("name")
        return (self.prefix, *self.separators)[index], (*self.separators, self.suffix)[index]


HERMES = ToolCallFormat(
    prefix=f'{CALL}\n{{"name": "',
    fields=("name", "arguments"),
    separators=('", "arguments": ',),
    suffix=f"}}\n{CALL_END}",
    call_separator=f'}}\n{CALL_END}\n{CALL}\n{{"name": "',
    content_separator="\n",
)
"""The format of Hermes, Qwen and the demo base; used for bases whose template has no format."""
