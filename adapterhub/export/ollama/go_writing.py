"""Writes Go template code: texts, texts that depend on conditions, and JSON in a given style."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from adapterhub.export.ollama.probing import STYLES, TOOLS_MARK, JsonStyle, Key, ToolList

_DIMENSIONS = ("think", "tools", "last", "previous")
_MARKER = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]+\]")


def literal(text: str, tools: ToolList | None = None) -> str:
    """Code that prints a text, in which `TOOLS_MARK` stands for the list of tools."""
    before, mark, after = text.partition(TOOLS_MARK)
    if mark and tools:
        return _listed(before, tools, after)
    return re.sub(r'\{\{+|\{$|"""+|[^\n\t -~]', _escaped, text)


def _escaped(match: re.Match[str]) -> str:
    # A Modelfile loses characters that are not printable, ends at three quotes, and Go reads `{` before `{{` as code.
    text = match[0]
    if text[0] not in '{"' and text.isprintable():
        return text
    quoted = json.dumps(text) if text.isprintable() else f'"\\U{ord(text):08x}"'
    return f"{{{{ {quoted} }}}}"


def _listed(before: str, tools: ToolList, after: str) -> str:
    value = json_code(".Function" if tools.is_function else ".", tools.style)
    gap = tools.separator
    head, item = "{{ range $.Tools }}", value
    if before.endswith(gap):
        before, item = before.removesuffix(gap), literal(gap) + value
    elif after.startswith(gap):
        item, after = value + literal(gap), after.removeprefix(gap)
    else:
        head = "{{ range $number, $tool := $.Tools }}"
        item = f"{{{{ if $number }}}}{literal(gap)}{{{{ end }}}}{value}"
    return f"{literal(before)}{head}{item}{{{{ end }}}}{literal(after)}"


def json_code(value: str, style: JsonStyle) -> str:
    """Code that prints a value as JSON in a style."""
    return f'{{{{ template "{_writer_name(style)}" (json {value}) }}}}'


def json_writers(code: str) -> str:
    """The definitions of the JSON writers that some code uses."""
    return "".join(_writer(style) for style in STYLES if f'"{_writer_name(style)}"' in code)


def _writer_name(style: JsonStyle) -> str:
    if style.indent is not None:
        return f"json_indented_{style.indent}"
    return "json" if style == STYLES[0] else "json_compact"


def _writer(style: JsonStyle) -> str:
    """A template that copies the JSON of Go sign by sign, with a style's spaces and without its escapes of HTML."""
    indented = style.indent is not None
    newline = '{{ "\\n" }}{{ $margin }}'
    deeper = (
        f'{{{{- else if and (not $quoted) (eq $sign "{{" "[") (not (eq (slice $rest 0 1) "}}" "]")) }}}}'
        f'{{{{ $margin = print $margin "{" " * (style.indent or 0)}" }}}}{newline}\n'
        f'{{{{- else if and (not $quoted) (eq $sign ",") }}}}{newline}\n'
    )
    shallower = (
        '{{- if and (not $quoted) (eq $sign "}" "]") (not (eq $before "{" "[")) }}'
        f"{{{{ $margin = slice $margin {style.indent} }}}}{newline}{{{{ end }}}}\n"
    )
    spaced = "".join(
        f'{{{{- else if and (not $quoted) (eq $sign "{sign}") }}}}{{{{ " " }}}}\n'
        for sign, written in ((",", style.item), (":", style.key))
        if written.endswith(" ")
    )
    return (
        f'\n{{{{- define "{_writer_name(style)}" }}}}'
        "{{- $rest := . }}{{ $quoted := false }}{{ $escaped := false }}"
        + ('{{ $margin := "" }}{{ $before := "" }}' if indented else "")
        + "\n{{- range len . }}{{ if not $rest }}{{ break }}{{ end }}\n"
        "{{- $sign := slice $rest 0 1 }}{{ $width := 1 }}\n"
        '{{- if and (eq $sign "\\\\") (not $escaped) (ge (len $rest) 6) }}{{ $code := slice $rest 0 6 }}\n'
        '{{- if eq $code "\\\\u003c" }}{{ $sign = "<" }}{{ $width = 6 }}\n'
        '{{- else if eq $code "\\\\u003e" }}{{ $sign = ">" }}{{ $width = 6 }}\n'
        '{{- else if eq $code "\\\\u0026" }}{{ $sign = "&" }}{{ $width = 6 }}{{ end }}{{ end }}\n'
        "{{- $rest = slice $rest $width }}\n" + (shallower if indented else "") + "{{- $sign }}\n"
        "{{- if $escaped }}{{ $escaped = false }}\n"
        '{{- else if eq $sign "\\\\" }}{{ $escaped = true }}\n'
        '{{- else if eq $sign "\\"" }}{{ $quoted = not $quoted }}\n'
        + (deeper if indented else "")
        + spaced
        + "{{- end }}"
        + ("{{ $before = $sign }}" if indented else "")
        + "\n{{- end }}{{ end }}"
    )


def choice(texts: Mapping[Key, str], tools: ToolList | None, last: str) -> str:
    """Code that prints the text whose place it is.

    Args:
        texts: The text at each place; all places are before one kind.
        tools: How tools are listed.
        last: The condition under which a place is the last of its kind.
    """
    different = sorted(set(texts.values()))
    if len(different) < 2:
        return literal(different[0] if different else "", tools)
    head, tail = _shared(different)
    inner = {key: text[len(head) : len(text) - len(tail)] for key, text in texts.items()}
    branches = [
        (_condition(name, values, last), choice(group, tools, last)) for name, values, group in _split(inner)
    ]
    return literal(head, tools) + _branched(branches) + literal(tail, tools)


def _branched(branches: Sequence[tuple[str, str]]) -> str:
    """`if ... else if ... else ...`; the last branch is for all other cases."""
    *conditional, (_, otherwise) = branches
    if len(conditional) == 1 and not conditional[0][1]:
        return f"{{{{ if not ({conditional[0][0]}) }}}}{otherwise}{{{{ end }}}}"
    code = "".join(
        f"{{{{ {'else if' if number else 'if'} {test} }}}}{text}"
        for number, (test, text) in enumerate(conditional)
    )
    return code + (f"{{{{ else }}}}{otherwise}" if otherwise else "") + "{{ end }}"


def _condition(dimension: str, values: Sequence[object], last: str) -> str:
    match dimension:
        case "previous":
            named = " ".join(json.dumps("" if one == "start" else one) for one in values)
            return f"eq $previous {named}"
        case "tools":
            return "$.Tools"
        case "last":
            return last
    return "$.Think" if values == [True] else "and $.IsThinkSet (not $.Think)"


def _split(texts: Mapping[Key, str]) -> list[tuple[str, list[object], dict[Key, str]]]:
    """Groups of places in one dimension; the last one is the usual case."""
    divided = {name: _groups(texts, name) for name in _DIMENSIONS}
    dividing = [name for name in reversed(_DIMENSIONS) if len(divided[name]) > 1]
    if not dividing:  # no two places differ in one dimension only
        dividing = [name for name in reversed(_DIMENSIONS) if len(divided[name][0]) > 1]
        divided[dividing[0]] = [[value] for value in divided[dividing[0]][0]]
    dimension = next((name for name in _DIMENSIONS if _decides(texts, name)), dividing[0])
    return [
        (dimension, values, {key: text for key, text in texts.items() if getattr(key, dimension) in values})
        for values in divided[dimension]
    ]


def _groups(texts: Mapping[Key, str], dimension: str) -> list[list[object]]:
    """The values of a dimension, those together for which nothing else was found; the usual ones last."""
    tables: dict[object, dict[object, str]] = {}
    decides = _decides(texts, dimension)
    for key, text in texts.items():
        other = None if decides else tuple(one for name, one in key._asdict().items() if name != dimension)
        tables.setdefault(getattr(key, dimension), {})[other] = text
    groups: list[tuple[list[object], dict[object, str]]] = []
    for value, table in tables.items():
        same = (one for one in groups if all(one[1].get(key, text) == text for key, text in table.items()))
        values, known = next(same, ([], {}))
        if not values:
            groups.append((values, known))
        values.append(value)
        known.update(table)
    usual = None if None in tables else False  # `think` not set, no tools, not the last
    groups.sort(key=lambda group: (usual in group[0], not any(group[1].values()), len(group[0])))
    return [values for values, _ in groups]


def _decides(texts: Mapping[Key, str], dimension: str) -> bool:
    found: dict[object, str] = {}
    return all(found.setdefault(getattr(key, dimension), text) == text for key, text in texts.items())


def _shared(texts: Sequence[str]) -> tuple[str, str]:
    """The common beginning and end of different texts, cut so that what differs begins as a marker where it can."""
    head, tail = whole_markers(common_prefix(texts)), _whole_markers_after(common_suffix(texts))
    after_head = _whole_markers_after(common_suffix([text[len(head) :] for text in texts]))
    before_tail = whole_markers(common_prefix([text[: len(text) - len(tail)] for text in texts]))
    cuts = [(head, after_head), (before_tail, tail)]
    return max(cuts, key=lambda cut: _tidiness(texts, *cut))


def whole_markers(text: str) -> str:
    """The text up to a marker that is not closed in it."""
    return text[: text.rindex("<")] if text.rfind("<") > text.rfind(">") else text


def _whole_markers_after(text: str) -> str:
    closing, opening = text.find(">"), text.find("<")
    return text[closing + 1 :] if closing >= 0 and (opening < 0 or closing < opening) else text


def _tidiness(texts: Sequence[str], head: str, tail: str) -> int:
    inner = [text[len(head) : len(text) - len(tail)] for text in texts]
    return sum(not text or bool(_MARKER.match(text)) or text[0] in "\n#" for text in inner)


def common_prefix(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    first, last = min(texts, default=""), max(texts, default="")
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((index for index, (one, other) in pairs if one != other), len(first))]


def common_suffix(texts: Sequence[str]) -> str:
    return common_prefix([text[::-1] for text in texts])[::-1]


def through_first_marker(text: str) -> str:
    """The text through its first marker, such as `<|im_end|>`, and the space after it; without one, its first space."""
    match = _MARKER.search(text) or re.match(r"\s+", text)
    if not match:
        return whole_markers(text)
    rest = text[match.end() :]
    return text[: match.end()] + rest[: len(rest) - len(rest.lstrip())]
