"""The `code` task: a small function described in words in, Python that passes its checks out."""

# ruff: noqa: E501, SIM905 (phrases stay whole, and a list of words reads better as text)

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from examples.demo import words
from examples.demo.tasks import Record
from examples.demo.tasks.sandbox import RUNNER
from examples.demo.words import Split

Phrases = dict[Split, tuple[str, ...]]
TIMEOUT_S = 5.0


class Function(NamedTuple):
    """A small function.

    Attributes:
        name: Its name.
        argument: The name of its one argument.
        description: What it does, as it follows the word "that".
        expression: What it returns, as Python.
        samples: Arguments to check it with.
    """

    name: str
    argument: str
    description: str
    expression: str
    samples: list[Any]

    @property
    def source(self) -> str:
        """The whole function."""
        return f"def {self.name}({self.argument}):\n    return {self.expression}"


def _p(train: str, heldout: str) -> Phrases:
    return {"train": tuple(train.split(" | ")), "heldout": tuple(heldout.split(" | "))}


ARITHMETIC: tuple[tuple[Phrases, str], ...] = (
    (_p("adds {k} to {a} | returns {a} plus {k} | gives {a} increased by {k} | returns the sum of {a} and {k} | gives back the sum of {a} and {k}",
        "gives back {a} plus {k} | returns {a} increased by {k}"), "{a} + {k}"),
    (_p("subtracts {k} from {a} | returns {a} minus {k} | gives {a} decreased by {k} | takes {k} away from {a} | gives back {a} less {k} | returns {a} reduced by {k}",
        "gives back {a} minus {k} | returns {a} decreased by {k}"), "{a} - {k}"),
    (_p("multiplies {a} by {k} | returns {a} times {k} | gives the product of {a} and {k} | gives back {a} multiplied by {k} | returns {a} multiplied by {k}",
        "gives back {a} times {k} | returns the product of {a} and {k}"), "{a} * {k}"),
    (_p("returns the remainder of {a} divided by {k} | gives {a} modulo {k} | gives back the rest of {a} modulo {k} | gives the remainder of {a} by {k} | returns {a} modulo {k}",
        "gives the remainder of {a} divided by {k} | gives back {a} modulo {k}"), "{a} % {k}"),
    (_p("divides {a} by {k} without a remainder | returns the whole part of {a} divided by {k} | gives back {a} divided by {k}, without the rest | gives {a} divided by {k}, rounded down",
        "returns {a} divided by {k}, rounded down | gives the whole part of {a} divided by {k}"), "{a} // {k}"),
    (_p("returns the larger of {a} and {k} | gives the maximum of {a} and {k} | returns {a}, but at least {k} | gives back the larger of {a} and {k} | finds the maximum of {a} and {k}",
        "returns the maximum of {a} and {k} | gives the larger of {a} and {k}"), "max({a}, {k})"),
    (_p("returns the smaller of {a} and {k} | gives the minimum of {a} and {k} | returns {a}, but at most {k} | gives back the smaller of {a} and {k} | finds the minimum of {a} and {k}",
        "returns the minimum of {a} and {k} | gives the smaller of {a} and {k}"), "min({a}, {k})"),
    (_p("squares {a} and adds {k} | returns the square of {a} plus {k} | gives {a} squared plus {k}",
        "returns {a} squared plus {k} | gives the square of {a} plus {k}"), "{a} * {a} + {k}"),
    (_p("multiplies {a} by {k} and then adds {j} | returns {a} times {k} plus {j} | multiplies {a} by {k} and adds {j}",
        "gives {a} times {k} plus {j} | returns {a} multiplied by {k} plus {j}"), "{a} * {k} + {j}"),
    (_p("multiplies {a} by {k} and then subtracts {j} | returns {a} times {k} minus {j} | multiplies {a} by {k} and subtracts {j}",
        "gives {a} times {k} minus {j} | returns {a} multiplied by {k} minus {j}"), "{a} * {k} - {j}"),
    (_p("tells whether {a} is greater than {k} | checks if {a} is greater than {k} | returns True if {a} is above {k}",
        "checks whether {a} is above {k} | returns True if {a} is greater than {k}"), "{a} > {k}"),
    (_p("tells whether {a} is less than {k} | checks if {a} is less than {k} | returns True if {a} is below {k}",
        "checks whether {a} is below {k} | returns True if {a} is less than {k}"), "{a} < {k}"),
    (_p("tells whether {a} is divisible by {k} | checks if {a} is divisible by {k} | returns True if {k} divides {a}",
        "checks whether {a} is divisible by {k} | returns True if {a} is divisible by {k}"), "{a} % {k} == 0"),
)  # fmt: skip
CHOICES: tuple[tuple[Phrases, str], ...] = (
    (_p('returns "{u}" if {a} is greater than {k}, otherwise "{v}" | gives "{u}" when {a} is above {k} and "{v}" otherwise',
        'returns "{u}" when {a} is greater than {k}, otherwise "{v}"'), '"{u}" if {a} > {k} else "{v}"'),
    (_p('returns "{u}" if {a} is less than {k}, otherwise "{v}" | gives "{u}" when {a} is below {k} and "{v}" otherwise',
        'returns "{u}" when {a} is less than {k}, otherwise "{v}"'), '"{u}" if {a} < {k} else "{v}"'),
)  # fmt: skip
CONDITIONS: tuple[tuple[Phrases, str], ...] = (
    (
        _p(
            "greater than {k} | above {k} | bigger than {k} | larger, not smaller, than {k} | larger numbers than {k}",
            "larger than {k}",
        ),
        "x > {k}",
    ),
    (
        _p(
            "less than {k} | below {k} | smaller than {k} | lower numbers than {k} | lower, not higher, than {k}",
            "lower than {k}",
        ),
        "x < {k}",
    ),
    (
        _p(
            "divisible by {k} | multiples of {k} | evenly divided by {k} | divisible, evenly, by {k}",
            "evenly divisible by {k}",
        ),
        "x % {k} == 0",
    ),
    (_p("even | even numbers | even and not odd | simply even", "even, not odd"), "x % 2 == 0"),
    (
        _p(
            "not equal to {k} | different from {k} | unequal to {k} | other numbers than {k}",
            "other than {k}",
        ),
        "x != {k}",
    ),
)
CHANGES: tuple[tuple[Phrases, str], ...] = (
    (_p("adds {k} to every number in {a} | returns {a} with {k} added to each number | increases each number of {a} by {k}",
        "adds {k} to each number in {a} | increases every number in {a} by {k}"), "[x + {k} for x in {a}]"),
    (_p("multiplies every number in {a} by {k} | returns {a} with each number multiplied by {k} | gives each number of {a} times {k}",
        "multiplies each number in {a} by {k} | gives every number in {a} times {k}"), "[x * {k} for x in {a}]"),
    (_p("subtracts {k} from every number in {a} | returns {a} with {k} subtracted from each number | decreases each number of {a} by {k}",
        "subtracts {k} from each number in {a} | decreases every number in {a} by {k}"), "[x - {k} for x in {a}]"),
)  # fmt: skip
FILTERS: tuple[tuple[Phrases, str], ...] = (
    (_p("returns the numbers in {a} that are {c} | keeps the numbers of {a} that are {c} | keeps only those numbers in {a} that are {c} | returns those numbers of {a} that are {c} | lists the numbers in {a} that are {c}",
        "keeps the numbers in {a} that are {c} | lists those numbers of {a} that are {c}"), "[x for x in {a} if {e}]"),
    (_p("returns the sum of the numbers in {a} that are {c} | adds up the numbers in {a} that are {c} | sums the numbers of {a} that are {c} | adds up those numbers of {a} that are {c} | gives the sum of those numbers in {a} that are {c}",
        "sums the numbers in {a} that are {c} | returns the sum of those numbers in {a} that are {c}"), "sum(x for x in {a} if {e})"),
    (_p("counts the numbers in {a} that are {c} | returns how many numbers in {a} are {c} | gives the count of numbers in {a} that are {c} | counts those numbers in {a} that are {c} | counts how many of {a} are {c}",
        "counts how many numbers in {a} are {c} | returns the count of numbers in {a} that are {c}"), "sum(1 for x in {a} if {e})"),
)  # fmt: skip
REDUCTIONS: tuple[tuple[Phrases, str], ...] = (
    (_p("returns the sum of {a} plus {k} | adds up {a} and adds {k} | sums {a} and adds {k}",
        "gives the sum of {a} plus {k}"), "sum({a}) + {k}"),
    (_p("returns the largest number of {a} | gives the maximum of {a} | finds the largest number in {a}",
        "returns the maximum of {a} | finds the largest number of {a}"), "max({a})"),
    (_p("returns the smallest number of {a} | gives the minimum of {a} | finds the smallest number in {a}",
        "returns the minimum of {a} | finds the smallest number of {a}"), "min({a})"),
    (_p("returns the first {k} numbers of {a} | gives the first {k} items of {a} | keeps the first {k} numbers of {a}",
        "returns the first {k} items of {a}"), "{a}[:{k}]"),
    (_p("returns the last {k} numbers of {a} | gives the last {k} items of {a} | keeps the last {k} numbers of {a}",
        "returns the last {k} items of {a}"), "{a}[-{k}:]"),
    (_p("sorts {a} | returns {a} in sorted order | gives {a} sorted", "returns {a} sorted"), "sorted({a})"),
    (_p("sorts {a} from large to small | returns {a} sorted from large to small | gives {a} in falling order",
        "returns {a} in falling order"), "sorted({a}, reverse=True)"),
)  # fmt: skip
STRINGS: tuple[tuple[Phrases, str], ...] = (
    (_p('puts "{u}" in front of {a} | returns {a} with "{u}" in front | adds the prefix "{u}" to {a}',
        'returns {a} with the prefix "{u}"'), '"{u}" + {a}'),
    (_p('puts "{u}" after {a} | returns {a} with "{u}" at the end | adds the ending "{u}" to {a}',
        'returns {a} with the ending "{u}"'), '{a} + "{u}"'),
    (_p("repeats {a} {k} times | returns {a} repeated {k} times | gives {k} copies of {a} in a row",
        "gives {a} repeated {k} times"), "{a} * {k}"),
    (_p("returns {a} in upper case | turns {a} into upper case | gives {a} in capital letters",
        "gives {a} in upper case"), "{a}.upper()"),
    (_p("returns {a} in lower case | turns {a} into lower case | gives {a} in small letters",
        "gives {a} in lower case"), "{a}.lower()"),
    (_p("reverses {a} | returns {a} reversed | gives {a} spelled backwards", "gives {a} reversed"), "{a}[::-1]"),
    (_p('counts how often "{w}" occurs in {a} | returns how many times "{w}" is in {a} | counts "{w}" in {a}',
        'returns how often "{w}" is in {a}'), '{a}.count("{w}")'),
    (_p('replaces "{w}" with "{u}" in {a} | returns {a} with "{w}" replaced by "{u}" | swaps "{w}" for "{u}" in {a}',
        'gives {a} with "{w}" replaced by "{u}"'), '{a}.replace("{w}", "{u}")'),
    (_p('tells whether {a} starts with "{w}" | checks if {a} starts with "{w}" | returns True if {a} begins with "{w}"',
        'checks whether {a} begins with "{w}"'), '{a}.startswith("{w}")'),
    (_p('splits {a} at "{w}" | returns the parts of {a} between "{w}" | cuts {a} at every "{w}" | gives {a} split up at "{w}"',
        'returns {a} split at "{w}"'), '{a}.split("{w}")'),
    (_p("returns the length of {a} plus {k} | adds {k} to the length of {a} | gives the length of {a} plus {k}",
        "returns {k} plus the length of {a}"), "len({a}) + {k}"),
)  # fmt: skip

NUMBER_NAMES = (
    "n value number amount height m total price width gain score level count size balance depth angle".split()
)
LIST_NAMES = "numbers values items data heights prices series sizes marks wages scores levels counts totals samples depths angles".split()
TEXT_NAMES = "text word line name caption s phrase label entry comment title message string path reply remark slogan".split()

REQUESTS: Phrases = _p(
    "Write a function {f}({a}) that {d}. | Write a Python function {f}({a}) that {d}. | I need a function {f}({a}) that {d}. | "
    "Define {f}({a}) in Python: a function that {d}. | Please write {f}({a}), a function that {d}. | "
    "Make a Python function {f}({a}) that {d}. | Can you write a function {f}({a}) that {d}? | "
    "Implement {f}({a}) so that it {d}. | Give me Python code for {f}({a}), which {d}. | Code a function {f}({a}) that {d}. | "
    "In Python, write {f}({a}) that {d}. | Show me a function {f}({a}) that {d}. | Python: a function {f}({a}) that {d}. | "
    "Please implement a function {f}({a}) that {d}. | Help me with a function {f}({a}) that {d}. | Could you write {f}({a}), a Python function that {d}? | Create a function {f}({a}) that {d}. | Create the function {f}({a}), which {d}. | Build {f}({a}), a Python function that {d}. | Make {f}({a}), a function in Python that {d}. | Show {f}({a}), a Python function that {d}. | Draft {f}({a}), which {d}. | Design {f}({a}), a Python function that {d}. | Return {f}({a}), Python code that {d}. | Sketch {f}({a}), a function that {d}. | Compose {f}({a}) in Python: it {d}. | Finish {f}({a}), a Python function that {d}. | Add {f}({a}), a Python function that {d}. | Prepare {f}({a}): a Python function that {d}. | Try {f}({a}), a function that {d}. | Produce {f}({a}) in Python so that it {d}. | Create Python code for {f}({a}), which {d}. | I want to have a Python function {f}({a}) that {d}.",
    "Please give me a Python function {f}({a}) that {d}. | Could you code a function {f}({a}) that {d}? | "
    "I want a function {f}({a}) in Python that {d}. | Create {f}({a}), a Python function that {d}.",
)


def function(rng: random.Random, split: Split) -> Function:
    """A function of a random kind."""
    kinds: tuple[Callable[[random.Random, Split], Function], ...] = (_on_number, _on_list, _on_text)
    return rng.choices(kinds, (4, 4, 3))[0](rng, split)


def _name(rng: random.Random, split: Split) -> str:
    return words.identifier(rng, split, rng.choice([1, 2, 2]))


def _fill(rng: random.Random, split: Split, argument: str, low: int, high: int) -> dict[str, Any]:
    word = words.identifier(rng, split)
    return {
        "a": argument,
        "k": words.number(rng, low, high, split),
        "j": words.number(rng, 2, 99, split),
        "u": words.identifier(rng, split),
        "v": words.identifier(rng, split),
        "w": word[: rng.choice([1, 2, 9])],
    }


def _described(
    rng: random.Random, split: Split, kind: tuple[Phrases, str], fill: dict[str, Any], samples: list[Any]
) -> Function:
    phrases, shape = kind
    name, description = _name(rng, split), rng.choice(phrases[split])
    return Function(name, fill["a"], description.format_map(fill), shape.format_map(fill), samples)


def _on_number(rng: random.Random, split: Split) -> Function:
    argument = words.pick_or_invent(rng, NUMBER_NAMES, split)
    kind = rng.choice(ARITHMETIC if rng.random() < 0.8 else CHOICES)
    fill = _fill(rng, split, argument, 2, 99)
    k = fill["k"]
    samples = [0, 1, -3, k, k - 1, k + 1, 7 * k, rng.randint(-50, 300)]
    return _described(rng, split, kind, fill, samples)


def _on_list(rng: random.Random, split: Split) -> Function:
    argument = words.pick_or_invent(rng, LIST_NAMES, split)
    group = rng.choice([CHANGES, FILTERS, FILTERS, REDUCTIONS])
    kind = rng.choice(group)
    fill = _fill(rng, split, argument, 2, 9 if group is REDUCTIONS else 99)
    condition, test = rng.choice(CONDITIONS)
    fill |= {"c": rng.choice(condition[split]).format_map(fill), "e": test.format_map(fill)}
    k = fill["k"]
    samples = [
        [k, k - 1, k + 1, 3 * k],
        [5, 2, 9, -4, 0, 12],
        [rng.randint(-20, 120) for _ in range(12)],
        [k],
    ]
    return _described(rng, split, kind, fill, samples)


def _on_text(rng: random.Random, split: Split) -> Function:
    argument = words.pick_or_invent(rng, TEXT_NAMES, split)
    kind = rng.choice(STRINGS)
    fill = _fill(rng, split, argument, 2, 20)
    w = fill["w"]
    samples = ["", "Hello", w, f"{w}x{w}", f"Some {w} in here", f"{w.upper()} and {w}{w}"]
    return _described(rng, split, kind, fill, samples)


def make(rng: random.Random, split: Split) -> Record:
    """One described function; what it must return follows from running the right answer."""
    wanted = function(rng, split)
    request = rng.choice(REQUESTS[split]).format(f=wanted.name, a=wanted.argument, d=wanted.description)
    return {
        "messages": [{"role": "user", "content": request}, {"role": "assistant", "content": wanted.source}],
        "check": {"language": "en", "name": wanted.name, "samples": wanted.samples},
    }


def generate(split: Split, n: int, seed: int) -> list[Record]:
    """`n` requests of a split; the same seed gives the same requests."""
    rng = random.Random(f"code {split} {seed}")
    return [make(rng, split) for _ in range(n)]


def score(record: Record, answer: str) -> bool:
    """Whether the answer is one function of the right name that returns what the right answer returns, on every sample.

    Both run in a process of their own, without the standard library and with a timeout; code outside a small part of
    Python is not run at all.
    """
    job = {**record["check"], "answer": answer, "right": record["messages"][-1]["content"]}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", RUNNER],
            input=json.dumps(job), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and done.stdout.strip() == "same"
