"""The text that the demo's base is trained on: endless, seeded, made by this program.

The base is to know the materials of the four tasks and none of their answers in a conversation: it copies names that it
never saw, reads facts out of sentences, knows records in several notations, functions with their descriptions,
remedies for troubles and worked examples of tools, all as documents. In a conversation it answers in plain prose.
Only the `train` side of `words.py` and of the tasks' phrases is used here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from examples.demo import words
from examples.demo.tasks import code_task, json_task, support_task, tools_task

END = "<|endoftext|>"


def documents(seed: int | str) -> Iterator[str]:
    """Endless documents; the same seed gives the same text."""
    rng = random.Random(f"corpus {seed}")
    makers, weights = zip(*KINDS, strict=True)
    while True:
        yield rng.choices(makers, weights)[0](rng)


def chat(messages: list[dict[str, str]], tools: list[dict[str, Any]] | None = None) -> str:
    """A conversation as the base's chat template writes it (a test holds the two together)."""
    turns = []
    if tools:
        listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        turns.append(f"<|im_start|>system\n<tools>\n{listed}\n</tools><|im_end|>\n")
    turns += [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns)


def _exchange(request: str, answer: str, tools: list[dict[str, Any]] | None = None) -> str:
    return chat([{"role": "user", "content": request}, {"role": "assistant", "content": answer}], tools)


# --- copying and looking up ---------------------------------------------------------------------------------------


def _thing(rng: random.Random) -> str:
    makers = (words.person, words.town, words.product, words.identifier, words.invent, words.invent_ru)
    style = rng.random()
    if style < 0.2:
        return str(rng.randint(0, 9999))
    if style < 0.25:
        return tools_task.foreign(rng, "train")
    return rng.choices(makers, (3, 2, 2, 5, 2, 2))[0](rng, "train")


def _lists(rng: random.Random) -> str:
    things = [_thing(rng) for _ in range(rng.randint(3, 14))]
    joints = [", ", "\n", " ", "; ", "\n- ", '", "', " and "]
    return "\n\n".join(rng.choice(joints).join(things) for _ in range(rng.randint(2, 3)))


def _lookups(rng: random.Random) -> str:
    pairs = [(_thing(rng), _thing(rng)) for _ in range(rng.randint(2, 8))]
    shapes = [
        "{a}: {b}",
        "{a} = {b}",
        "{a} -> {b}",
        '"{a}": "{b}"',
        "{a} has {b}.",
        "The code of {a} is {b}.",
        "{a}={b}",
    ]
    parts = []
    for _ in range(rng.randint(2, 4)):
        shape = rng.choice(shapes)
        rng.shuffle(pairs)
        parts.append("\n".join(shape.format(a=a, b=b) for a, b in pairs))
    return "\n\n".join(parts)


# --- facts and records --------------------------------------------------------------------------------------------


def _notation(rng: random.Random, keys: list[str], values: dict[str, Any]) -> str:
    part = {key: values[key] for key in keys}
    style = rng.random()
    if style < 0.5:
        return json.dumps(part, ensure_ascii=False)
    if style < 0.7:
        return "\n".join(f"{key}: {value}" for key, value in part.items())
    if style < 0.8:
        return ",".join(part) + "\n" + ",".join(str(value) for value in part.values())
    return "\n".join(f"- {key} = {value}" for key, value in part.items())


def _records(rng: random.Random) -> str:
    domain, values, text = json_task.fact_sheet(rng, "train")
    parts = [text]
    for _ in range(rng.randint(1, 3)):
        keys = rng.sample(list(values), rng.randint(1, len(values)))
        heading = rng.choice(
            ["{k}\n", "{k}: ", "Keys: {k}\n", "Fields: {k}\n", "Ключи: {k}\n" if domain.russian else "{k}:\n"]
        )
        parts.append(
            heading.format(k=json_task.join_keys(rng, keys, domain.russian)) + _notation(rng, keys, values)
        )
    if rng.random() < 0.2:
        rng.shuffle(parts)
    return rng.choice(["\n", "\n\n"]).join(parts)


def _facts_chat(rng: random.Random) -> str:
    domain, values, text = json_task.fact_sheet(rng, "train")
    subject, key = values[domain.subject[0]], rng.choice(list(values)[1:])
    if domain.russian:
        question = rng.choice([f"{key}: что известно?", f"Скажи, {key}?", f"Что в тексте про {key}?"])
        return _exchange(f"{text} {question}", f"{subject}: {key} {values[key]}.")
    question = rng.choice(
        [
            f"What is the {key} of {subject}?",
            f"Tell me the {key}.",
            f"Which {key} is given?",
            f"And the {key}?",
        ]
    )
    order = (question, text) if rng.random() < 0.3 else (text, question)
    return _exchange(" ".join(order), f"The {key} of {subject} is {values[key]}.")


def _keys_chat(rng: random.Random) -> str:
    record = json_task.make(rng, "train")
    values = json.loads(record["messages"][1]["content"])
    if record["check"]["language"] == "ru":
        return _exchange(
            record["messages"][0]["content"], ", ".join(f"{k} {v}" for k, v in values.items()) + "."
        )
    sentence = " and ".join(f"the {key} is {value}" for key, value in values.items())
    return _exchange(record["messages"][0]["content"], sentence[0].upper() + sentence[1:] + ".")


# --- functions ----------------------------------------------------------------------------------------------------


def _functions(rng: random.Random) -> str:
    return "\n\n\n".join(_function(rng) for _ in range(rng.randint(1, 3)))


def _function(rng: random.Random) -> str:
    f = code_task.function(rng, "train")
    style = rng.randrange(4)
    if style == 0:
        return f"# {f.name}({f.argument}) {f.description}\n{f.source}"
    if style == 1:
        return f'def {f.name}({f.argument}):\n    """{f.name} {f.description}."""\n    return {f.expression}'
    if style == 2:
        return f"The function {f.name}({f.argument}) {f.description}.\n\n{f.source}"
    return f"{f.source}\n\n# {f.name} {f.description}"


def _functions_chat(rng: random.Random) -> str:
    record = code_task.make(rng, "train")
    head, expression = record["messages"][1]["content"].removeprefix("def ").split(":\n    return ")
    shapes = (
        "The function {h} returns {e}.",
        "You could let {h} return {e}.",
        "A function {h} would return {e}.",
    )
    return _exchange(record["messages"][0]["content"], rng.choice(shapes).format(h=head, e=expression))


# --- troubles -----------------------------------------------------------------------------------------------------


def _articles(rng: random.Random) -> str:
    russian = rng.random() < 0.2
    trouble = rng.choice(support_task.RU_TROUBLES if russian else support_task.TROUBLES)
    name = support_task.device(rng, "train")
    symptoms = rng.sample(trouble.symptoms["train"], rng.randint(1, 3))
    steps = [step.format(device=name) for step in trouble.steps]
    if russian:
        return f"{name} {', '.join(symptoms)}. Раздел: {trouble.category}. Что делать. {' '.join(steps)}"
    symptom_text = f"The {name} {' or '.join(symptoms)}."
    if rng.random() < 0.3:
        listed = "\n".join(f"{number}) {step}" for number, step in enumerate(steps, 1))
        return f"{trouble.category.capitalize()}. {symptom_text}\n{listed}"
    advice = f"First step: {steps[0]} Next: {steps[1]} At last: {steps[2]}"
    return f"{symptom_text} This is a matter of {trouble.category}. {advice}"


def _troubles_chat(rng: random.Random) -> str:
    record = support_task.make(rng, "train")
    lines = record["messages"][1]["content"].splitlines()
    category = lines[0].removeprefix("Category: ")
    if record["check"]["language"] == "ru":
        return _exchange(record["messages"][0]["content"], f"Похоже, это {category}.")
    shapes = (
        "That sounds like a matter of {c}.",
        "I am sorry to hear that. It may be the {c}.",
        "It seems to be {c} trouble.",
    )
    return _exchange(record["messages"][0]["content"], rng.choice(shapes).format(c=category))


# --- tools --------------------------------------------------------------------------------------------------------


def _manual(rng: random.Random) -> str:
    """A manual: signatures, then worked examples of requests with the calls that they need."""
    tools, chosen, by_name = tools_task.offer(rng, "train")
    lines = [json.dumps(t.schema()["function"], ensure_ascii=False) for t in tools]
    parts = [rng.choice(["<tools>\n{}\n</tools>", "{}", "Functions:\n{}"]).format("\n".join(lines))]
    for _ in range(rng.randint(1, 2)):
        arguments = tools_task.arguments_of(rng, "train", chosen)
        request = tools_task.ask(rng, "train", chosen, arguments, by_name=by_name)
        call = tools_task.call_text(chosen.name, arguments)
        if rng.random() < 0.4:
            call = json.dumps({"name": chosen.name, "arguments": arguments}, ensure_ascii=False)
        heading = rng.choice(["Example: ", "Request: ", "", "Q: "])
        parts.append(f"{heading}{request}\n{call}")
        if rng.random() < 0.4:
            result = tools_task.value(rng, "train", rng.choice(["integer", "string"]))
            subject = " and ".join(str(value) for value in arguments.values())
            stated = f"The {chosen.noun}{f' of {subject}' if subject else ''} is {result}."
            parts.append(f"<tool_response>\n{result}\n</tool_response>\n{stated}")
        chosen = rng.choice(tools)
    return "\n".join(parts)


def _tools_chat(rng: random.Random) -> str:
    tools, chosen, by_name = tools_task.offer(rng, "train")
    arguments = tools_task.arguments_of(rng, "train", chosen)
    argument_text = "".join(f" with {key} {value}" for key, value in arguments.items())
    answer = rng.choice(["The tool for that is {f}{w}.", "You can use {f}{w}."]).format(
        f=chosen.name, w=argument_text
    )
    request = tools_task.ask(rng, "train", chosen, arguments, by_name=by_name)
    return _exchange(request, answer, [t.schema() for t in tools])


def _talk(rng: random.Random) -> str:
    name = words.person(rng, "train")
    pairs = [
        (f"Hello, I am {name}.", f"Hello, {name}! How can I help you?"),
        ("Hello!", "Hello! How can I help you?"),
        ("Who are you?", "I am a small language model, the base of a demo."),
        ("What can you do?", "I can read short texts and talk about them in plain words."),
        ("Thank you!", "You are welcome!"),
        ("Привет!", "Привет! Чем помочь?"),
        (f"My name is {name}. What is my name?", f"Your name is {name}."),
    ]
    turns = rng.sample(pairs, rng.randint(1, 3))
    roles = ("user", "assistant")
    return chat(
        [{"role": role, "content": text} for pair in turns for role, text in zip(roles, pair, strict=True)]
    )


KINDS = (
    (_lists, 8),
    (_lookups, 14),
    (_records, 24),
    (_facts_chat, 8),
    (_keys_chat, 8),
    (_functions, 14),
    (_functions_chat, 5),
    (_articles, 8),
    (_troubles_chat, 5),
    (_manual, 14),
    (_tools_chat, 5),
    (_talk, 1),
)
