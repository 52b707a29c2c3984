"""How tool calls are written.

Most chat templates write them as a few fixed texts around a name and the arguments' JSON:

    <tool_call>\\n{"name": "add", "arguments": {"a": 1}}\\n</tool_call>              Hermes, Qwen
    {"name": "add", "parameters": {"a": 1}}                                        Llama 3.1
    [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "9DrSyYMbp"}]       Mistral v3
    [TOOL_CALLS]add[ARGS]{"a": 1}                                                  Mistral v13
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Part: TypeAlias = Literal["name", "arguments", "id"]
CALL, CALL_END = "<tool_call>", "</tool_call>"
ID_SIZE = 9
"""Letters and digits of an id where templates show ids: Mistral's take no other."""


@dataclass(frozen=True)
class CallFormat:
    """The texts around the parts of calls; an answer's calls are head, call, join, call, ..., tail.

    Attributes:
        head: What stands before the first call's first part.
        parts: The parts of a call, in their order.
        gaps: What stands between one part of a call and the next.
        tail: What stands after the last call's last part.
        join: What stands between the last part of a call and the first of the next; None where only one call may be.
        lead: What stands between a text and the head.
        text_arguments: Whether the template takes arguments as a text of JSON, not as an object.
    """

    head: str
    parts: tuple[Part, ...]
    gaps: tuple[str, ...]
    tail: str
    join: str | None = None
    lead: str = ""
    text_arguments: bool = False

    @property
    def mark(self) -> str:
        """What tells calls from a text: what stands before their JSON, or all of the head if that says nothing."""
        before = self.head.partition("{")[0].rstrip()
        return before if any(map(str.isalnum, before)) else self.head

    @property
    def alone(self) -> bool:
        """Whether calls are told from a text only by how the answer begins, so that no text can stand before them."""
        return "{" in self.mark

    @property
    def quoted(self) -> bool:
        """Whether names are JSON strings."""
        return self._beside_name()[0].endswith('"')

    @property
    def readable(self) -> bool:
        """Whether it says where calls begin and names end, and is what a base was trained on."""
        before, after = self._beside_name()
        ended = after.startswith('"') if before.endswith('"') else after and self.parts[-1] != "name"
        # Some templates write a quotation mark as HTML does where arguments are an object.
        return bool(self.head.strip() and ended) and "&#" not in before + after

    def _beside_name(self) -> tuple[str, str]:
        place = self.parts.index("name")
        return (self.head, *self.gaps)[place], (*self.gaps, self.tail)[place]


DEFAULT = CallFormat(
    head=f'{CALL}\n{{"name": "',
    parts=("name", "arguments"),
    gaps=('", "arguments": ',),
    tail=f"}}\n{CALL_END}",
    join=f'}}\n{CALL_END}\n{CALL}\n{{"name": "',
    lead="\n",
)
"""The form for bases whose template has none: that of Hermes, Qwen and the demo's base."""
