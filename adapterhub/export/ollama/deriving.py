"""Derives a template for Ollama, in Go's language, from a prompt format.

The texts that were found between contents are divided into what follows a message and what precedes the next one, and
written around Ollama's messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from adapterhub.export.ollama.go_writing import (
    choice,
    common_prefix,
    common_suffix,
    json_code,
    json_writers,
    literal,
    through_first_marker,
)
from adapterhub.export.ollama.probing import Key, ProbedFormat, not_expressible, probe
from adapterhub.export.ollama.source import PromptSource

_ROLES = ("system", "user", "assistant", "tool")
_IS_LAST = "eq (len (slice $.Messages $index)) 1"
_IS_LAST_USER = "eq $index $last_user"
_FIND_LAST_USER = (
    "{{- $last_user := -1 }}{{- range $index, $message := .Messages }}"
    '{{- if eq .Role "user" }}{{ $last_user = $index }}{{ end }}{{ end -}}\n'
)


@dataclass(frozen=True)
class OllamaTemplate:
    """A template for Ollama.

    Attributes:
        text: The template.
        has_tools: Whether it shows tools and calls.
        end_of_answer: What follows an answer, such as `<|im_end|>`.
        roles: The roles that the prompt format knows.
    """

    text: str
    has_tools: bool
    end_of_answer: str
    roles: tuple[str, ...]


def derive_template(source: PromptSource, *, tools: bool = True) -> OllamaTemplate:
    """Derives the template; it is not verified yet.

    Args:
        source: The prompt format.
        tools: Whether to include tools where the format has them.

    Raises:
        ExportError: The format cannot be expressed.
    """
    return _Derivation(probe(source, tools=tools)).template()


@dataclass(frozen=True)
class _Calls:
    """How calls are written.

    Attributes:
        lead: What stands before the first one where the answer has no content, besides `opening`.
        lead_after_content: The same after content.
        begins_as_answer: Whether what precedes an answer's content precedes its calls too.
        opening: What stands before each name.
        middle: Between name and arguments.
        gap: Between two calls.
    """

    lead: str
    lead_after_content: str
    begins_as_answer: bool
    opening: str
    middle: str
    gap: str


class _Derivation:
    def __init__(self, found: ProbedFormat) -> None:
        self._found, self._of = found, found.at
        self._has_calls = bool(found.at(kind="name"))
        self._after = {role: _common_end(found.at(previous=role)) for role in _ROLES}
        if found.system_place != "first":
            self._after["system"] = ""
        self._item_end, self._calls_end = self._ends_of_calls()
        self._before = self._texts_before()
        self._unreasoned = self._cut_unreasoned()
        self._moved_system = self._system_in_user() if found.system_place != "first" else ""

    def template(self) -> OllamaTemplate:
        roles = tuple(role for role in _ROLES if self._found.at(kind=role))
        written = [role for role in roles if role != "system" or not self._moved_system]
        update = "{{ $previous = .Role }}"
        if self._moved_system:
            update = f'{{{{ if ne .Role "system" }}}}{update}{{{{ end }}}}'
        branches = "".join(
            f'{{{{ {"else if" if number else "if"} eq .Role "{role}" }}}}{self._message(role)}'
            for number, role in enumerate(written)
        )
        end = self._choice("end", "")
        closing = f'\n{{{{- if ne $previous "assistant" }}}}{end}{{{{ end }}}}' if end else ""
        known = "$previous" in branches + closing
        # No space of the layout may stand beside a text: `{{-` would take away the text's own.
        body = (
            ('{{- $previous := "" }}\n' if known else "")
            + "{{- range $index, $message := .Messages }}"
            + f"{branches}{{{{ end }}}}{update if known else ''}{{{{ end }}}}{closing}"
        )
        first = _FIND_LAST_USER if "$last_user" in body else ""
        return OllamaTemplate(
            first + body + json_writers(body),
            self._found.tool_list is not None,
            self._after["assistant"],
            roles,
        )

    def _message(self, role: str) -> str:
        after = literal(self._after[role])
        if role != "assistant":
            last = _IS_LAST_USER if role == "user" else ""
            system = self._moved_system if role == "user" else ""
            return self._choice(role, last) + system + self._content(role) + after
        begun = f"{{{{ if not ({_IS_LAST}) }}}}{after}{{{{ end }}}}" if after else ""
        return self._answer() + begun

    def _system_in_user(self) -> str:
        """Code for the system message inside the user's, where the format has it there."""
        system, user = self._before.pop("system", {}), self._before["user"]
        same = all(user.get(key._replace(kind="user", last=True)) == text for key, text in system.items())
        after = {user.pop(key) for key in list(user) if key.previous == "system"}
        if not system or not same or len(after) > 1:
            raise not_expressible("the place of the system message varies")
        shown = _IS_LAST_USER if self._found.system_place == "last user" else _IS_LAST
        return f"{{{{ if and $.System ({shown}) }}}}{{{{ $.System }}}}{literal(after.pop())}{{{{ end }}}}"

    def _content(self, role: str) -> str:
        style = self._found.styles.get(role)
        return json_code(".Content", style) if style else "{{ .Content }}"

    def _choice(self, kind: str, last: str) -> str:
        return choice(self._before.get(kind, {}), self._found.tool_list, last)

    def _answer(self) -> str:
        last = f"and ({_IS_LAST}) (not .Thinking)" if "reasoning" in self._before else _IS_LAST
        plain = self._choice("assistant", last) + self._reasoning()
        content = self._content("assistant")
        if not self._has_calls:
            return plain + content
        calls = self._calls
        lead, lead_after_content = literal(calls.lead), literal(calls.lead_after_content)
        hidden = f"{{{{ if not $message.ToolCalls }}}}{plain}{content}{{{{ end }}}}"
        if not calls.begins_as_answer:
            return f"{hidden}{{{{ if .ToolCalls }}}}{lead}{self._calls_code()}{{{{ end }}}}"
        if self._found.hides_content:
            content = f"{{{{ if not $message.ToolCalls }}}}{content}{{{{ end }}}}"
        gap = ""
        if lead != lead_after_content:
            # Ollama takes the first text after `if .ToolCalls` for the sign of a call, so this stands before it.
            otherwise = f"{{{{ else }}}}{lead}" if lead else ""
            inner = f"{{{{ if .Content }}}}{lead_after_content}{otherwise}{{{{ end }}}}"
            gap, lead = f"{{{{ if $message.ToolCalls }}}}{inner}{{{{ end }}}}", ""
        return f"{plain}{content}{gap}{{{{ if .ToolCalls }}}}{lead}{self._calls_code()}{{{{ end }}}}"

    @cached_property
    def _calls(self) -> _Calls:
        begins = {place: text + self._unreasoned for place, text in self._begins.items()}
        names = {_place(key): text for key, text in self._before.get("name", {}).items()}
        joined = all(place in begins and text.startswith(begins[place]) for place, text in names.items())
        first = {text.removeprefix(begins[place] if joined else "") for place, text in names.items()}
        after_content = set(self._of("content", "name").values())
        between = set(self._of("arguments", "name").values())
        middle = set(self._of("name", "arguments").values())
        if not first:
            raise not_expressible("it refuses calls without a text")
        if max(map(len, (first, after_content, between, middle))) > 1 or (after_content and not joined):
            raise not_expressible("calls are written in several ways")
        opening = common_suffix([*first, *after_content, *between])
        lead = first.pop().removesuffix(opening)
        return _Calls(
            lead=lead,
            lead_after_content=after_content.pop().removesuffix(opening) if after_content else lead,
            begins_as_answer=joined,
            opening=opening,
            middle=middle.pop(),
            gap=between.pop().removesuffix(opening).removeprefix(self._item_end) if between else "",
        )

    def _calls_code(self) -> str:
        calls = self._calls
        is_followed = "gt (len (slice $message.ToolCalls $number)) 1"
        separated = f"{{{{ if {is_followed} }}}}{literal(calls.gap)}{{{{ end }}}}" if calls.gap else ""
        head = "{{ range $number, $call := .ToolCalls }}" if calls.gap else "{{ range .ToolCalls }}"
        call = (
            f"{literal(calls.opening)}{{{{ .Function.Name }}}}{literal(calls.middle)}"
            f"{json_code('.Function.Arguments', self._found.styles['arguments'])}{literal(self._item_end)}"
        )
        return f"{head}{call}{separated}{{{{ end }}}}{literal(self._calls_end)}"

    def _ends_of_calls(self) -> tuple[str, str]:
        """What follows each call, and what follows the last one besides."""
        if not self._has_calls:
            return "", ""
        ends = [text for key, text in self._of("arguments").items() if key.kind != "name"]
        common, after = common_prefix(ends), self._after["assistant"]
        if after not in common:
            raise not_expressible("answers with calls do not end as others do")
        closing = common[: common.index(after)] if after else through_first_marker(common)
        between = list(self._of("arguments", "name").values())
        item = common_prefix([closing, *between])
        return item, closing.removeprefix(item)

    def _texts_before(self) -> dict[str, dict[Key, str]]:
        """Kind -> the texts before it, without what ends the message before."""
        before: dict[str, dict[Key, str]] = {}
        for key, text in self._found.texts.items():
            previous, end = key.previous, self._after.get(key.previous, "")
            if previous == "arguments" and key.kind != "name":
                previous, end = "assistant", self._item_end + self._calls_end + end
                end += self._after["assistant"]
            elif previous in ("arguments", "name", "content", "reasoning"):
                continue
            place = key._replace(previous=previous)
            rest = text.removeprefix(end)
            if before.setdefault(key.kind, {}).setdefault(place, rest) != rest:
                raise not_expressible("what follows an answer depends on whether it has calls")
        return before

    @property
    def _begins(self) -> dict[tuple[object, ...], str]:
        """What stands before an answer that is not the last message, for each place."""
        return {_place(key): text for key, text in self._before["assistant"].items() if not key.last}

    def _cut_unreasoned(self) -> str:
        """Takes what stands in the place of reasoning, where there is none, out of what stands before answers."""
        begins, rests = self._begins, set()
        for key, text in self._before.get("reasoning", {}).items():
            plain = begins.get(_place(key), "")
            shared = common_prefix([plain, text])
            if shared != plain:  # the marker of reasoning stands in both
                shared = shared[: shared.rindex("<")] if shared.rstrip().endswith(">") else shared
            rests.add(plain[len(shared) :])
        rest = rests.pop() if len(rests) == 1 else ""
        if rest and all(text.endswith(rest) for text in self._before["assistant"].values()):
            for key, text in self._before["assistant"].items():
                self._before["assistant"][key] = text.removesuffix(rest)
            return rest
        return ""

    def _reasoning(self) -> str:
        """Code for the reasoning of an answer, where the format shows it."""
        if "reasoning" not in self._before:
            return ""
        opening = {
            text.removeprefix(self._begins.get(_place(key), ""))
            for key, text in self._before["reasoning"].items()
        }
        first_call = self._calls.lead + self._calls.opening if self._has_calls else ""
        closing = {
            text.removesuffix(first_call) if key.kind == "name" else text
            for key, text in self._of("reasoning").items()
        }
        if len(opening) > 1 or len(closing) > 1:
            raise not_expressible("reasoning is written in several ways")
        always = any(key.kind == "assistant" for key in self._of("reasoning"))
        shown = ".Thinking" if always else "and .Thinking (gt $index $last_user)"
        otherwise = f"{{{{ else }}}}{literal(self._unreasoned)}" if self._unreasoned else ""
        return (
            f"{{{{ if {shown} }}}}{literal(opening.pop())}{{{{ .Thinking }}}}{literal(closing.pop())}"
            f"{otherwise}{{{{ end }}}}"
        )


def _place(key: Key) -> tuple[object, ...]:
    return key.previous, key.tools, key.think


def _common_end(texts: Mapping[Key, str]) -> str:
    """What follows a message whatever comes next."""
    shared = common_prefix(list(texts.values())) if texts else ""
    return through_first_marker(shared)
