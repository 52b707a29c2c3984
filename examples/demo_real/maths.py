"""The `maths` task: a word problem of GSM8K in, its equations and the final number out.

GSM8K writes worked answers in prose with calculator annotations, `<<48/2=24>>`. Only the annotations are kept, one a
line: a small base learns the steps sooner without the prose, in a third of the tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from examples.demo.tasks import Record

SYSTEM = "Solve the maths problem with short equations."
TRAINING = 1300
"""Rows of GSM8K's training part to train on; the next ones are held out."""
LONGEST = 250
"""Characters of a question to train on."""


def training(rows: Iterable[Mapping[str, str]]) -> list[Record]:
    """The first 1,300 problems without those that are long or have no annotated step."""
    records = [_record(row) for row in list(rows)[:TRAINING]]
    return [
        record
        for record in records
        if "\n" in record["messages"][-1]["content"] and len(record["messages"][0]["content"]) < LONGEST
    ]


def heldout(rows: Iterable[Mapping[str, str]], n: int = 200) -> list[Record]:
    """The `n` problems that follow those to train on, all of them."""
    return [_record(row) for row in list(rows)[TRAINING : TRAINING + n]]


def _record(row: Mapping[str, str]) -> Record:
    body, final = row["answer"].split("####")
    steps = re.findall(r"<<(.*?)>>", body)
    answer = "\n".join([*steps, f"#### {final.strip().replace(',', '')}"])
    messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "check": {}}


def score(record: Record, answer: str) -> bool:
    """Whether the answer's final number is exactly the right one: that after `####`, else the last one."""
    right, given = final_number(record["messages"][-1]["content"]), final_number(answer)
    return given is not None and given == right


def final_number(answer: str) -> float | None:
    """The number after `####`, or the last number of an answer without it."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", answer.split("####")[-1].replace(",", ""))
    if not numbers:
        return None
    return float(numbers[0] if "####" in answer else numbers[-1])
