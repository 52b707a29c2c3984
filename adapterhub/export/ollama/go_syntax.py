"""The part of Go's `text/template` that Ollama's templates use, parsed: https://pkg.go.dev/text/template.

Anything else is refused, so that no template is said to be right that was not understood.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

_ACTION = re.compile(
    r"\{\{(?P<trim>-(?=\s))?"
    r"(?P<code>\s*/\*.*?\*/\s*?|(?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|[^\"`}]|\}(?!\}))*?)"
    r"(?P<trim_after>(?<=\s)-)?\}\}",
    re.DOTALL,
)
_TOKEN = re.compile(
    r"\s*(?:(?P<string>\"(?:\\.|[^\"\\])*\"|`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?)|(?P<sign>:=|[=,()|])"
    r"|(?P<variable>\$\w*(?:\.\w+)*)|(?P<field>(?:\.[A-Za-z_]\w*)+)|(?P<dot>\.)|(?P<name>[A-Za-z_]\w*))"
)
_SPACE = " \t\r\n"  # what trim markers remove
_CONSTANTS = {"true": True, "false": False, "nil": None}


class GoTemplateError(ValueError):
    """A template is not valid, or uses what is not known here."""


@dataclass(frozen=True)
class Constant:
    value: Any


@dataclass(frozen=True)
class Function:
    name: str


@dataclass(frozen=True)
class Reference:
    """`.A.B`, `$name.A` or `(pipeline).A`: fields of the dot (no root), of a variable or of a value."""

    root: str | Pipeline | None
    path: tuple[str, ...] = ()


Operand: TypeAlias = "Constant | Function | Reference | Pipeline"


@dataclass(frozen=True)
class Pipeline:
    """`$a, $b := command | command`; each command is an operand with its arguments."""

    commands: tuple[tuple[Operand, ...], ...]
    variables: tuple[str, ...] = ()
    declares: bool = False


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Action:
    pipeline: Pipeline


@dataclass(frozen=True)
class Branch:
    """`if`, `with` or `range`."""

    kind: str
    pipeline: Pipeline
    body: Nodes
    otherwise: Nodes


@dataclass(frozen=True)
class Call:
    """`template "name" pipeline`."""

    name: str
    pipeline: Pipeline


@dataclass(frozen=True)
class Jump:
    """`break` or `continue`."""

    kind: str


Node: TypeAlias = "Text | Action | Branch | Call | Jump"
Nodes: TypeAlias = "tuple[Node, ...]"


@dataclass(frozen=True)
class GoTemplate:
    """A parsed template and those that it defines.

    Attributes:
        nodes: The template.
        defined: Those that it defines, by name.
        rendered: What these printed for a text; it depends on nothing else.
    """

    nodes: Nodes
    defined: dict[str, Nodes] = field(default_factory=dict)
    rendered: dict[tuple[str, str], str] = field(default_factory=dict, compare=False)


def parse(source: str) -> GoTemplate:
    """Parses a template.

    Raises:
        GoTemplateError: It is not valid, or uses what is not known here.
    """
    parser = _Parser(list(_pieces(source)))
    nodes, end = parser.nodes()
    if end != "":
        raise GoTemplateError(f"{{{{ {end} }}}} without a beginning")
    return GoTemplate(nodes, parser.defined)


def _pieces(source: str) -> Iterator[tuple[bool, str]]:
    """Texts (False) and the code of actions (True), with what trim markers remove already removed."""
    start, trim = 0, False
    while (opening := source.find("{{", start)) >= 0:
        match = _ACTION.match(source, opening)
        if match is None:
            raise GoTemplateError("an action has no end")
        text = source[start:opening]
        text = text.lstrip(_SPACE) if trim else text
        yield False, text.rstrip(_SPACE) if match["trim"] else text
        if not match["code"].lstrip().startswith("/*"):
            yield True, match["code"]
        start, trim = match.end(), bool(match["trim_after"])
    yield False, source[start:].lstrip(_SPACE) if trim else source[start:]


class _Parser:
    def __init__(self, pieces: Sequence[tuple[bool, str]]) -> None:
        self._pieces = iter(pieces)
        self.defined: dict[str, Nodes] = {}

    def nodes(self) -> tuple[Nodes, str]:
        """The nodes up to an `end` or `else`, and the code of that; empty at the end of the source."""
        nodes: list[Node] = []
        for is_code, text in self._pieces:
            if not is_code:
                nodes += [Text(text)] if text else []
                continue
            word, _, rest = text.strip().partition(" ")
            match word:
                case "end" | "else":
                    return tuple(nodes), text.strip()
                case "if" | "with" | "range":
                    nodes.append(self._branch(word, rest))
                case "template":
                    name, pipeline = _named(rest)
                    nodes.append(Call(name, pipeline))
                case "define":
                    name, _ = _named(rest)
                    self.defined[name] = self._body()
                case "break" | "continue":
                    nodes.append(Jump(word))
                case _:
                    nodes.append(Action(_pipeline(text)))
        return tuple(nodes), ""

    def _body(self) -> Nodes:
        body, end = self.nodes()
        if end != "end":
            raise GoTemplateError("a block has no end")
        return body

    def _branch(self, kind: str, code: str) -> Branch:
        pipeline = _pipeline(code)
        body, end = self.nodes()
        otherwise: Nodes = ()
        if end.startswith("else "):
            nested, _, rest = end.removeprefix("else").strip().partition(" ")
            if nested not in ("if", "with"):
                raise GoTemplateError(f"{{{{ {end} }}}} is not known")
            otherwise, end = (self._branch(nested, rest),), "end"
        elif end == "else":
            otherwise, end = self.nodes()
        if end != "end":
            raise GoTemplateError(f"{kind} has no end")
        return Branch(kind, pipeline, body, otherwise)


def _named(code: str) -> tuple[str, Pipeline]:
    match = re.match(r'\s*"(\w+)"', code)
    if not match:
        raise GoTemplateError(f"a template's name is missing in {code!r}")
    return match[1], _pipeline(code[match.end() :] or "nil")


def _pipeline(code: str) -> Pipeline:
    tokens = _Tokens(code)
    pipeline = tokens.pipeline()
    if tokens.kind:
        raise GoTemplateError(f"{code.strip()!r} is not understood")
    return pipeline


class _Tokens:
    """The tokens of one action, read one by one."""

    def __init__(self, code: str) -> None:
        self._code, self._position = code, 0
        self.kind: str | None = None
        self.text = ""
        self.advance()

    def advance(self) -> str:
        """Moves to the next token, and returns the text of the one before."""
        text = self.text
        match = _TOKEN.match(self._code, self._position)
        if match is None and self._code[self._position :].strip():
            raise GoTemplateError(f"{self._code.strip()!r} is not understood")
        self.kind, self.text = (match.lastgroup, match[match.lastgroup or 0]) if match else (None, "")
        self._position = match.end() if match else len(self._code)
        return text

    def pipeline(self) -> Pipeline:
        variables, sign = self._declared()
        commands = [self._command()]
        while self.text == "|":
            self.advance()
            commands.append(self._command())
        return Pipeline(tuple(commands), variables, sign == ":=")

    def _declared(self) -> tuple[tuple[str, ...], str]:
        match = re.match(r"\s*(\$\w+)\s*(?:,\s*(\$\w+)\s*)?(:=|=)", self._code)
        if self.kind != "variable" or not match or self._position > match.end():
            return (), ""
        self._position = match.end()
        self.advance()
        return tuple(name for name in match.groups()[:2] if name), match[3]

    def _command(self) -> tuple[Operand, ...]:
        operands: list[Operand] = []
        while self.kind and self.text not in ("|", ")"):
            operands.append(self._operand())
        if not operands:
            raise GoTemplateError(f"a command is missing in {self._code.strip()!r}")
        return tuple(operands)

    def _operand(self) -> Operand:
        kind, text = self.kind, self.advance()
        match kind:
            case "string":
                return Constant(text[1:-1] if text[0] == "`" else ast.literal_eval(text))
            case "number":
                return Constant(float(text) if "." in text else int(text))
            case "variable":
                name, *path = text.split(".")
                return Reference(name, tuple(path))
            case "field":
                return Reference(None, tuple(text[1:].split(".")))
            case "dot":
                return Reference(None)
            case "name":
                return Constant(_CONSTANTS[text]) if text in _CONSTANTS else Function(text)
            case "sign" if text == "(":
                return self._parenthesis()
        raise GoTemplateError(f"{self._code.strip()!r} is not understood")

    def _parenthesis(self) -> Operand:
        inner = self.pipeline()
        if self.text != ")":
            raise GoTemplateError(f"a parenthesis is not closed in {self._code.strip()!r}")
        joined = self._code[self._position : self._position + 1] == "."
        self.advance()
        if joined and self.kind == "field":
            return Reference(inner, tuple(self.advance()[1:].split(".")))
        return inner
