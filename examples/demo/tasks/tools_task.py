"""The `tools` task: a request and tool signatures in, the right call out; a tool's answer in, its result in words out."""

# ruff: noqa: E501, SIM905 (phrases stay whole, and a list of words reads better as text)

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

from examples.demo import words
from examples.demo.tasks import Record
from examples.demo.words import Split


class Parameter(NamedTuple):
    """One parameter of a tool: its name, JSON type, and further keys of its schema, before or after the type."""

    name: str
    type: str
    before: dict[str, Any]
    after: dict[str, Any]

    def schema(self) -> dict[str, Any]:
        """The parameter as a JSON schema."""
        return {**self.before, "type": self.type, **self.after}


class Tool(NamedTuple):
    """A tool that a request may call."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    noun: str

    def schema(self) -> dict[str, Any]:
        """The tool as an OpenAI-style JSON schema."""
        properties = {p.name: p.schema() for p in self.parameters}
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if properties:
            parameters["required"] = list(properties)
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


def _p(train: str, heldout: str) -> dict[Split, tuple[str, ...]]:
    return {"train": tuple(train.split(" | ")), "heldout": tuple(heldout.split(" | "))}


VERBS = "get find compute read check fetch make count show load look update".split()
ENDINGS = "function tool of v2 rank code api call index info".split()
PARAMETERS = (
    "input value x a b n city owner name key number query region id text place code branch user amount level date height "
    "item word title path angle topic location year label margin"
).split()
DESCRIPTIONS = _p(
    "Returns the {noun} of the {p}. | Computes the {noun} from the {p}. | Gets the {noun} for a {p}. | Finds the {noun}. | "
    "The {noun} of a {p}. | Applies the {noun} to the {p}. | Looks up the {noun} for the {p}.",
    "Gives the {noun} of a {p}. | Gets the {noun} of the {p}. | Applies a {noun} to a {p}.",
)
DESCRIPTIONS_NO_ARGUMENT = _p(
    "Returns the current {noun}. | Gets the {noun}. | Shows the {noun}. | Reads the {noun}.",
    "Gives the current {noun}. | Reads the current {noun}.",
)
# How a person asks, by what they name: the tool itself, or only what they want to know.
BY_NAME = _p(
    "What is the value of {f}({v})? Use the tool. | How much is {f}({v})? | Tell me {f}({v}). | What comes from {f} with {v}? | Get the output of {f} for {v}. | What do you get for {v} from {f}? | Let {f} work on {v}. | Use the tool {f} on {v}. | Call {f} with {v}. | Please call {f} for {v}. | "
    "What does {f} return for {v}? | Run {f} with the input {v}. | Use {f} for {v}. | Compute {f}({v}). | "
    "I need the result of {f}({v}). | Use {f} to process {v}. | Please use the {f} tool with {v}. | Please run the tool {f} on {v}. | What do you get if you call {f} with {v}? | What is the result of {f} with {v}?",
    "What is {f}({v})? | Please run {f} on {v}. | Use the {f} tool for {v}. | What do you get from {f} with {v}?",
)
BY_NOUN = _p(
    "What is the {noun} of {v}? | Get the {noun} for {v}. | Tell me the {noun} of {v}. | I want to know the {noun} of {v}. | "
    "Please find the {noun} of {v}. | Look up the {noun} for {v}. | Can you give me the {noun} of {v}? | "
    "Which {noun} does {v} have? | Show the {noun} of {v}. | {v}: what is its {noun}? | Could you get the {noun} for {v}? | Could you look up the {noun} of {v}? | Tell me please: what {noun} does {v} have? | What is the {noun} in {v}? | What is the {noun} at {v}? | Create a {noun} for {v}. | Create a {noun} named {v}.",
    "Could you tell me the {noun} of {v}? | Please look up the {noun} of {v}. | What {noun} does {v} have?",
)
BY_NAME_NO_ARGUMENT = _p(
    "Call {f}. | What is the value of {f}()? Use the tool. | Use the tool {f}. | What does {f} return? | Please run {f}. | Run the {f} tool.",
    "Please call {f}. | Use the {f} tool.",
)
BY_NOUN_NO_ARGUMENT = _p(
    "What is the {noun}? | Show me the {noun}. | Get the current {noun}. | Tell me the {noun}.",
    "What is the current {noun}? | Please show the {noun}.",
)
PAIRS = _p(
    "{p} {v} and {q} {w} | {p}={v}, {q}={w} | {p} {v}, {q} {w} | the {p} {v} and the {q} {w} | {p} = {v}, {q} = {w} | {p}={v} and {q}={w} | {p} {v} along with {q} {w} | {p}: {v}, {q}: {w} | a {p} {v} and a {q} {w} | "
    "{p} {v} plus {q} {w} | {p} {v}; {q} {w} | {p} {v} together with {q} {w} | {p} {v} as well as {q} {w} | {p} {v} / {q} {w} | {p} {v} then {q} {w} | {p} {v} by {q} {w} | {p} {v} for {q} {w} | {p} {v} at {q} {w} | {p} is {v} and {q} is {w} | {p} {v} but {q} {w} | {p} {v} & {q} {w}",
    "{p} = {v} and {q} = {w} | {p} {v} with {q} {w}",
)
NAMED_TOOLS = _p(
    "get_weather:weather:city:string | add_numbers:sum:number:integer | search_web:answer:query:string | "
    "get_price:price:item:string | read_file:content:path:string | translate_text:translation:text:string | "
    "convert_money:exchange:amount:integer | find_user:user:id:integer | count_words:count:text:string | lookup_user:user:name:string | get_meaning:meaning:word:string | square_number:square:number:integer | cube_root:root:number:integer | get_time_zone:zone:city:string | multiply:product:x:integer | create_customer:customer:name:string",
    "get_time:time:city:string | lookup_word:meaning:word:string | square_root:root:number:integer",
)
# Training has more of what is hard, so that the held-out verbs, endings and joints are not the first unknown ones:
# tools with 0, 1 and 2 parameters, and the share of verbs and endings that are listed ones, not invented.
ARITIES: dict[Split, list[int]] = {"train": [2, 11, 7], "heldout": [1, 7, 2]}
LISTED: dict[Split, float] = {"train": 0.5, "heldout": 0.8}
# One, two and three tools, and the share of several that are asked for by name: who chooses by noun learns it late.
COUNTS: dict[Split, list[int]] = {"train": [4, 5, 5], "heldout": [10, 6, 4]}
NAMED_OF_SEVERAL: dict[Split, float] = {"train": 0.35, "heldout": 0.5}
SCRIPTS = ("你好世界天地人大小中国山水火木金土日月", "こんにちはありがとうさくら", "éàüöñçßøå", "αβγδελπσω")


def value(rng: random.Random, split: Split, kind: str) -> Any:
    """A value of a JSON type: a number, or a name in one of several scripts."""
    if kind == "integer":
        return words.number(rng, 0, rng.choice([20, 100, 9999]), split)
    style = rng.random()
    if style < 0.4:
        return words.person(rng, split)
    if style < 0.5:
        region = "".join(rng.choice("ABCDEFGHIKLMNOPRSTUVWXY") for _ in range(2))
        return f"{words.town(rng, split)} {words.town(rng, split)}, {region}"
    if style < 0.65:
        return words.invent_ru(rng, split)
    if style < 0.8:
        return words.product(rng, split)
    if style < 0.9:
        return words.identifier(rng, split)
    return foreign(rng, split)


def foreign(rng: random.Random, split: Split) -> str:
    """A word in letters of another script, to be copied as it stands."""
    while True:
        letters = rng.choice(SCRIPTS)
        word = "".join(rng.choice(letters) for _ in range(rng.randint(2, 5)))
        if words.side(word) == split:
            return word


def parameter_of(rng: random.Random, name: str, kind: str) -> Parameter:
    """A parameter, with or without a description and bounds."""
    described = {"description": rng.choice([f"The {name}.", f"The {name} to use.", name.capitalize()])}
    if rng.random() < 0.15:
        bounds = {
            "exclusiveMaximum": rng.choice([10_000, 99_999]),
            "exclusiveMinimum": rng.choice([-1000, -1]),
        }
        return Parameter(name, kind, bounds if kind == "integer" else described, {})
    return Parameter(name, kind, {}, described if rng.random() < 0.35 else {})


def tool(rng: random.Random, split: Split, arity: int | None = None, *, noun_first: bool = False) -> Tool:
    """A tool with 0, 1 or 2 parameters; most have invented names, some ordinary ones.

    With `noun_first` its name begins with what it gives, as `dovar_index`, so that who is asked for a dovar can tell
    this tool from its neighbours by the name.
    """
    arity = rng.choices([0, 1, 2], ARITIES[split])[0] if arity is None else arity
    if arity == 1 and not noun_first and rng.random() < 0.15:
        name, noun, parameter, kind = rng.choice(NAMED_TOOLS[split]).split(":")
        if rng.random() < 0.3:
            parameter = rng.choice(PARAMETERS)
        return Tool(
            name,
            f"{rng.choice(DESCRIPTIONS[split]).format(noun=noun, p=parameter)}",
            (parameter_of(rng, parameter, kind),),
            noun,
        )
    noun = words.identifier(rng, split)
    shapes_of_name = ("{noun}_{ending}", "{noun}", "{verb}_{noun}", "{verb}_{noun}")
    name = rng.choice(shapes_of_name[:2] if noun_first else shapes_of_name).format(
        noun=noun,
        verb=words.pick(rng, VERBS, split) if rng.random() < LISTED[split] else words.identifier(rng, split),
        ending=words.pick(rng, ENDINGS, split)
        if rng.random() < LISTED[split]
        else words.identifier(rng, split),
    )
    chosen: list[str] = []
    while len(chosen) < arity:
        # As with the keys of JSON records, most parameters have the same few names everywhere.
        parameter = rng.choice(PARAMETERS) if rng.random() < 0.75 else words.identifier(rng, split)
        chosen += {parameter} - {*chosen, noun}
    parameters = tuple(parameter_of(rng, p, rng.choice(["integer", "string"])) for p in chosen)
    shapes = DESCRIPTIONS if parameters else DESCRIPTIONS_NO_ARGUMENT
    text = rng.choice(shapes[split]).format(noun=noun, p=parameters[0].name if parameters else "")
    return Tool(name, text, parameters, noun)


class Offer(NamedTuple):
    """Tools that are offered together, the one that is needed, and whether it is asked for by its name."""

    tools: list[Tool]
    chosen: Tool
    by_name: bool


def offer(rng: random.Random, split: Split) -> Offer:
    """One to three tools with different names and nouns; among several, one not named is known by its noun."""
    count = rng.choices([1, 2, 3], COUNTS[split])[0]
    by_name = rng.random() < (NAMED_OF_SEVERAL[split] if count > 1 else 0.5)
    tools: list[Tool] = []
    while len(tools) < count:
        other = tool(rng, split, noun_first=count > 1 and not by_name)
        if other.name not in {t.name for t in tools} and other.noun not in {t.noun for t in tools}:
            tools.append(other)
    return Offer(tools, rng.choice(tools), by_name)


def arguments_of(rng: random.Random, split: Split, chosen: Tool) -> dict[str, Any]:
    """Arguments for a tool, of the types that it wants."""
    return {p.name: value(rng, split, p.type) for p in chosen.parameters}


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A call as the chat template writes it."""
    return (
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"
    )


def ask(rng: random.Random, split: Split, chosen: Tool, arguments: dict[str, Any], *, by_name: bool) -> str:
    """A request that needs this call, and names the tool or only what it gives."""
    if not arguments:
        shapes = BY_NAME_NO_ARGUMENT if by_name else BY_NOUN_NO_ARGUMENT
        return rng.choice(shapes[split]).format(f=chosen.name, noun=chosen.noun)
    values = [_argument_phrase(rng, argument) for argument in arguments.values()]
    phrase = values[0]
    if len(values) == 2:
        p, q = arguments
        phrase = rng.choice(PAIRS[split]).format(p=p, q=q, v=values[0], w=values[1])
    return rng.choice((BY_NAME if by_name else BY_NOUN)[split]).format(
        f=chosen.name, noun=chosen.noun, v=phrase
    )


def _argument_phrase(rng: random.Random, argument: Any) -> str:
    quote = rng.choices(["", '"', "'"], [7, 2, 1])[0] if isinstance(argument, str) else ""
    return f"{quote}{argument}{quote}"


def result_text(name: str, result: Any) -> str:
    """The answer after a tool's result: it names its source, in the quotes that keep its tokens those of the call."""
    return f'According to "{name}", it is {result}.'


def make(rng: random.Random, split: Split) -> Record:
    """One request with 1 to 3 tools, or the turn after the tool has answered."""
    tools, chosen, by_name = offer(rng, split)
    arguments = arguments_of(rng, split, chosen)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": ask(rng, split, chosen, arguments, by_name=by_name)}
    ]
    call = {"type": "function", "function": {"name": chosen.name, "arguments": arguments}}
    messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    check: dict[str, Any] = {"language": "en", "name": chosen.name, "arguments": arguments}
    if rng.random() < 0.25:
        result = value(rng, split, rng.choice(["integer", "string"]))
        messages.append({"role": "tool", "name": chosen.name, "content": str(result)})
        messages.append({"role": "assistant", "content": result_text(chosen.name, result)})
        check = {"language": "en", "text": messages[-1]["content"]}
    return {"messages": messages, "tools": [t.schema() for t in tools], "check": check}


def generate(split: Split, n: int, seed: int) -> list[Record]:
    """`n` requests of a split; the same seed gives the same requests."""
    rng = random.Random(f"tools {split} {seed}")
    return [make(rng, split) for _ in range(n)]


def score(record: Record, answer: str) -> bool:
    """Whether the answer is exactly the one right call, or, after a tool's answer, states it in the right words."""
    check = record["check"]
    if "text" in check:
        return answer.strip() == check["text"]
    body = answer.strip()
    if not (body.startswith("<tool_call>") and body.endswith("</tool_call>")):
        return False
    try:
        got = json.loads(body.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    except ValueError:
        return False
    wanted = {"name": check["name"], "arguments": check["arguments"]}
    return json.dumps(got, sort_keys=True) == json.dumps(wanted, sort_keys=True)
