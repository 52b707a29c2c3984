"""The `calculate` task: a word problem in, the one expression out that a calculator computes its answer from.

A small model chooses the operations better than it computes them. Most problems are made by this program, of one or two steps;
some are GSM8K's, with the annotations of their worked answers put into one expression.
"""

# ruff: noqa: E501 (phrases stay whole)

from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from examples.demo.tasks import Record
from examples.demo_real import maths
from examples.demo_real.extraction import Split

SYSTEM = "Answer with the expression for a calculator that solves the problem."
BASE_SYSTEM = "Solve the maths problem step by step. End with '#### ' and the final number."
LONGEST = 200
"""Characters of a problem of GSM8K to train on."""
STEPS = 2
"""Annotations in the worked answer of a problem of GSM8K to train on, at most."""


@dataclass(frozen=True)
class Kind:
    """Problems with one expression: its numbers' lowest and highest values, and ways to tell it in training and held out."""

    expression: str
    numbers: Mapping[str, tuple[int, int]]
    train: tuple[str, ...]
    heldout: tuple[str, ...]


_NAMES: dict[Split, str] = {
    "train": "Anna Peter Maria Thomas Julia Ahmed Yuki Carlos Olga Ivan Fatima Jonas Grace Liam Emma Noah Priya Sofia Diego Nina Oscar Leila Hugo Clara Elena Marco Ruth Samuel Omar Zoe",
    "heldout": "Ingrid Rashid Beatrice Tomasz Keiko Malik Rosalind Viktor Amara Stefan Lucia Desmond",
}
_THINGS: dict[Split, str] = {
    "train": "apples|stickers|books|eggs|pencils|marbles|cookies|photos|shells|coins|cards|balloons|stamps|bottles|flowers|tickets|toys|oranges|buttons|candles",
    "heldout": "lemons|postcards|bricks|muffins|badges|beads|crayons|peaches|lanterns|seeds",
}
_BOXES: dict[Split, str] = {
    "train": "boxes|bags|baskets|packs|shelves|trays|jars",
    "heldout": "crates|drawers|sacks|cartons",
}
KINDS = (
    Kind(
        "{a}+{b}",
        {"a": (3, 400), "b": (3, 400)},
        train=(
            "{n} has {a} {o} and gets {b} more. How many {o} does {n} have now?",
            "There are {a} {o} on the table and {b} on the floor. How many are there altogether?",
            "{n} found {a} {o} and {m} found {b}. How many did they find together?",
            "A shop sold {a} {o} on Monday and {b} on Tuesday. How many did it sell in all?",
            "After giving away {b} {o}, {n} still has {a}. How many {o} were there at first?",
            "{n} is {a} cm tall. {m} is {b} cm taller. How tall is {m}?",
        ),
        heldout=(
            "In the morning {n} counted {a} {o}, in the evening {b} others. What is the total?",
            "{n} owns {b} {o} more than {m}, who owns {a}. How many does {n} own?",
        ),
    ),
    Kind(
        "{a}-{b}",
        {"a": (10, 500), "b": (3, 400)},
        train=(
            "{n} had {a} {o} and gave {b} to {m}. How many {o} are left?",
            "Of {a} {o}, {b} are red. How many are not red?",
            "{n} needs {a} {o} and already has {b}. How many more does {n} need?",
            "A book has {a} pages. {n} has read {b}. How many pages remain?",
            "{n} has {a} {o} and {m} has {b}. How many more does {n} have?",
            "{b} of the {a} {o} in the shop were sold. How many does the shop still have?",
        ),
        heldout=(
            "{n} carried {a} {o} home, but {b} of them fell out on the way. How many arrived?",
            "What is the difference if one class collects {a} {o} and the other only {b}?",
        ),
    ),
    Kind(
        "{a}*{b}",
        {"a": (2, 60), "b": (2, 40)},
        train=(
            "{n} buys {a} {x} with {b} {o} each. How many {o} are that?",
            "A ticket costs {b} dollars. How much do {a} tickets cost?",
            "{n} reads {b} pages a day. How many pages does {n} read in {a} days?",
            "There are {a} rows of {b} chairs. How many chairs are there?",
            "{m} has {b} {o}. {n} has {a} times as many. How many does {n} have?",
            "{n} earns {a} dollars an hour and works {b} hours. How much does {n} earn?",
        ),
        heldout=(
            "Each of the {a} {x} holds {b} {o}. What is the number of {o}?",
            "{n} swims {b} lengths every day. What does that make in {a} days?",
        ),
    ),
    Kind(
        "{a}/{b}",
        {"a": (6, 300), "b": (2, 25)},
        train=(
            "{n} shares {a} {o} equally among {b} friends. How many does each get?",
            "{a} {o} are packed into {b} {x}. How many go into each?",
            "{n} puts {b} {o} into each bag. How many bags are needed for {a} {o}?",
            "{b} tickets cost {a} dollars. What does one cost?",
            "A car drives {a} km in {b} hours. How many km does it drive in an hour?",
            "{n} has {a} {o}, which is {b} times as many as {m} has. How many does {m} have?",
        ),
        heldout=(
            "{a} {o} have to be split evenly between {b} {x}. How many are in each of them?",
            "{n} paid {a} dollars for {b} {o} at the same price. What was the price of one?",
        ),
    ),
    Kind(
        "{a}*{b}+{c}",
        {"a": (2, 30), "b": (2, 30), "c": (2, 90)},
        train=(
            "{n} has {a} {x} of {b} {o} and {c} loose ones. How many {o} does {n} have?",
            "{n} buys {a} {o} for {b} dollars each and a hat for {c} dollars. How much does {n} spend?",
            "A taxi costs {c} dollars plus {b} dollars for each km. What do {a} km cost?",
            "{n} had {c} {o}. Then {n} got {a} {x} with {b} in each. How many are there now?",
            "{n} saves {b} dollars a week and had {c} dollars before. How much is that after {a} weeks?",
            "{m} has {b} {o}. {n} has {c} more than {a} times as many. How many does {n} have?",
        ),
        heldout=(
            "There are {a} {x} holding {b} {o} each, and {c} more {o} lie beside them. How many {o} are there?",
            "{n} rents a boat: {c} dollars to start and {b} dollars an hour. What is the price for {a} hours?",
        ),
    ),
    Kind(
        "{a}*{b}-{c}",
        {"a": (2, 30), "b": (2, 30), "c": (2, 90)},
        train=(
            "{n} has {a} {x} of {b} {o} and gives away {c}. How many {o} are left?",
            "{n} works {a} hours for {b} dollars an hour and spends {c} dollars. How much is left?",
            "A farmer fills {a} {x} with {b} {o} each. {c} {o} are rotten. How many are good?",
            "There are {a} rows of {b} seats, and {c} seats are taken. How many are free?",
            "{n} sells {a} {o} for {b} dollars each. To make them cost {c} dollars. How much does {n} gain?",
            "{m} has {b} {o}. {n} has {c} fewer than {a} times as many. How many does {n} have?",
        ),
        heldout=(
            "{n} bakes {a} trays of {b} {o}, and {c} are eaten at once. How many remain?",
            "{c} of the {o} in {a} full {x} are broken. Each held {b}. How many are whole?",
        ),
    ),
    Kind(
        "({a}+{b})*{c}",
        {"a": (2, 40), "b": (2, 40), "c": (2, 20)},
        train=(
            "{n} eats {a} {o} in the morning and {b} in the evening. How many is that in {c} days?",
            "A shirt costs {a} dollars and a cap {b} dollars. What do {c} sets of both cost?",
            "Each of {c} children gets {a} {o} and {b} cookies. How many things are given out?",
            "{n} walks {a} km to work and {b} km home another way. How many km are that in {c} days?",
            "In each of {c} rooms there are {a} girls and {b} boys. How many children are there?",
        ),
        heldout=(
            "Every one of {c} {x} has {a} green and {b} white {o} in it. How many {o} are in all of them?",
            "{n} writes {a} pages before lunch and {b} after it. How many pages are ready after {c} such days?",
        ),
    ),
    Kind(
        "({a}-{b})*{c}",
        {"a": (5, 60), "b": (2, 40), "c": (2, 20)},
        train=(
            "{n} earns {a} dollars a day and spends {b}. How much does {n} save in {c} days?",
            "A box of {a} {o} has {b} broken ones. {n} has {c} such boxes. How many good ones are there?",
            "A coat of {a} dollars is {b} dollars cheaper today. What do {c} coats cost today?",
            "From each of {c} {x} with {a} {o}, {n} takes {b} out. How many {o} stay inside?",
            "{n} buys {o} for {b} dollars and sells them for {a} dollars each. What is the gain from {c} of them?",
        ),
        heldout=(
            "A lamp used to cost {a} dollars and now costs {b} less. What does {n} pay for {c} lamps?",
            "{c} {x} had {a} {o} each, and {b} were taken from every one. How many are left in total?",
        ),
    ),
    Kind(
        "({a}+{b})/{c}",
        {"a": (4, 150), "b": (4, 150), "c": (2, 12)},
        train=(
            "{n} has {a} red and {b} blue {o} and shares them equally among {c} friends. How many does each get?",
            "{n} and {m} pick {a} and {b} {o} and pack them into {c} {x} evenly. How many go into each?",
            "{a} girls and {b} boys form {c} equal teams. How many are in a team?",
            "{c} friends pay together {a} dollars for food and {b} dollars for drinks. How much does each pay?",
            "{n} has {a} {o} and buys {b}. If {c} fit into a bag, how many bags are needed?",
        ),
        heldout=(
            "{a} {o} from {n} and {b} from {m} are dealt out to {c} people in equal parts. What is one part?",
            "A trip costs {a} dollars for the bus and {b} for the museum. {c} pupils split it. How much is it for one?",
        ),
    ),
    Kind(
        "({a}-{b})/{c}",
        {"a": (10, 250), "b": (2, 120), "c": (2, 12)},
        train=(
            "{n} has {a} {o}, keeps {b} and shares the rest equally among {c} friends. How many does each get?",
            "A book has {a} pages. {n} has read {b} and reads {c} a day now. How many days does the rest take?",
            "{n} wants a bike for {a} dollars, has {b} and saves {c} dollars a week. How many weeks does it take?",
            "Of {a} {o}, {b} are bad. The others go into {c} {x} evenly. How many go into each?",
            "After a fee of {b} dollars, {c} winners share {a} dollars. How much does each get?",
        ),
        heldout=(
            "{n} throws away {b} of {a} {o} and splits what is left between {c} {x}. How many come into each?",
            "{a} dollars are needed, {b} are there. If {n} adds {c} dollars a day, after how many days is it enough?",
        ),
    ),
    Kind(
        "{a}-{b}*{c}",
        {"a": (20, 500), "b": (2, 25), "c": (2, 20)},
        train=(
            "{n} has {a} dollars and buys {b} {o} for {c} dollars each. How much money is left?",
            "{n} has {a} {o} and gives {c} to each of {b} friends. How many are left?",
            "A tank holds {a} liters. {c} liters flow out every hour. How many are left after {b} hours?",
            "{n} needs {a} {o} and has {b} {x} of {c}. How many are missing?",
            "The road is {a} km long. {n} goes {c} km a day. How many km are left after {b} days?",
        ),
        heldout=(
            "From {a} {o}, {n} fills {b} {x} with {c} each. How many does {n} not use?",
            "{n} pays for {b} lunches of {c} dollars with {a} dollars. How much change comes back?",
        ),
    ),
    Kind(
        "{a}+{b}-{c}",
        {"a": (5, 200), "b": (5, 200), "c": (3, 150)},
        train=(
            "{n} had {a} {o}, bought {b} and gave {c} to {m}. How many does {n} have now?",
            "A bus carries {a} people. {b} get on and {c} get off. How many are on the bus?",
            "{n} has {a} red and {b} blue {o}. {c} get lost. How many are left?",
            "A library has {a} books, gets {b} new ones and lends {c}. How many stay?",
            "{n} earned {a} dollars and then {b} dollars, and paid {c} dollars. How much is left?",
        ),
        heldout=(
            "{a} {o} were in the shop, {b} came with a truck, and {c} were sold. How many are there?",
            "{n} wins {a} points, then {b}, then loses {c}. What is the score?",
        ),
    ),
    Kind(
        "{a}+{a}*{b}",
        {"a": (2, 60), "b": (2, 9)},
        train=(
            "{n} has {a} {o}. {m} has {b} times as many. How many do they have together?",
            "A shop sold {a} {o} on Monday and {b} times as many on Tuesday. How many did it sell in all?",
            "{m} is {b} times as old as {n}, who is {a}. How old are they together?",
            "{n} ran {a} km. {m} ran {b} times that far. How far did both run together?",
        ),
        heldout=(
            "{n} picked {a} {o}, and {m} picked {b} times that number. What is their total?",
            "On the first day {a} guests came, on the second {b} times as many. How many guests came on both days?",
        ),
    ),
    Kind(
        "{a}*{b}*{c}",
        {"a": (2, 12), "b": (2, 12), "c": (2, 12)},
        train=(
            "{n} has {a} shelves with {b} {x} of {c} {o} each. How many {o} are that?",
            "A house has {a} floors with {b} rooms, and each room has {c} windows. How many windows are there?",
            "{a} workers work {b} hours a day for {c} days. How many hours of work are that?",
            "{n} drinks {a} cups a day. How many are that in {b} months of {c} days?",
        ),
        heldout=(
            "In each of {a} rooms stand {b} {x} with {c} {o}. How many {o} are in all rooms?",
            "{a} teams of {b} players get {c} {o} for every player. How many {o} are needed?",
        ),
    ),
)  # fmt: skip


def generate(split: Split, n: int, seed: int) -> list[Record]:
    """`n` problems with their expressions; the splits share no template, name, thing or container."""
    rng = random.Random(f"{split} {seed}")
    return [_record(rng, split) for _ in range(n)]


def _record(rng: random.Random, split: Split) -> Record:
    kind = rng.choice(KINDS)
    numbers = _numbers(kind, rng)
    first, second = rng.sample(_NAMES[split].split(), 2)
    words = {
        "n": first,
        "m": second,
        "o": rng.choice(_THINGS[split].split("|")),
        "x": rng.choice(_BOXES[split].split("|")),
    }
    story = rng.choice(kind.train if split == "train" else kind.heldout)
    return _conversation(story.format(**words, **numbers), kind.expression.format(**numbers))


def _conversation(problem: str, expression: str) -> Record:
    messages = [{"role": "user", "content": problem}, {"role": "assistant", "content": expression}]
    return {"messages": messages, "check": {}}


def _numbers(kind: Kind, rng: random.Random) -> dict[str, int]:
    """Numbers for which the answer is positive and whole."""
    while True:
        numbers = {name: rng.randint(*limits) for name, limits in kind.numbers.items()}
        result = value(kind.expression.format(**numbers))
        if result is not None and result > 0 and result == int(result):
            return numbers


def of_gsm8k(problems: Iterable[Record]) -> list[Record]:
    """The short problems of one or two steps among those that `maths` trains on."""
    short = (each for each in problems if len(each["messages"][0]["content"]) < LONGEST)
    return [record for record in map(_of_steps, short) if record]


def _of_steps(problem: Record) -> Record | None:
    """The problem with its steps as one expression, if that gives the final number."""
    asked, answer = (message["content"] for message in problem["messages"])
    *lines, final = answer.split("\n")
    steps = [line.split("=") for line in lines]
    if len(steps) > STEPS or any(len(step) != 2 for step in steps):
        return None
    expression = steps[-1][0]
    for earlier, result in steps[:-1]:
        inner = earlier if re.fullmatch(r"[\d.*]+", earlier) else f"({earlier})"
        expression = re.sub(rf"(?<![\d.]){re.escape(result)}(?![\d.])", inner, expression, count=1)
    right = value(expression) == maths.final_number(final) and not re.fullmatch(r"[\d.]+", expression)
    return _conversation(asked, expression) if right else None


_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value(expression: str) -> float | None:
    """What a calculator with the four operations gives; None for anything else."""
    try:
        return _compute(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, KeyError, OverflowError):
        return None


def _compute(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_compute(node.left), _compute(node.right))
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):  # `True` is an int too
        return node.value
    raise ValueError("neither a number nor an operation")


def score(record: Record, answer: str) -> bool:
    """Whether the answer is an expression with the right value, or a solution whose final number is right."""
    right, given = _result(record["messages"][-1]["content"]), _result(answer)
    return right is not None and given is not None and abs(given - right) < 1e-6


def _result(answer: str) -> float | None:
    computed = value(answer)
    if computed is not None:
        return computed
    return maths.final_number("####".join(answer.split("####")[:2]))  # the base may go on after its result
