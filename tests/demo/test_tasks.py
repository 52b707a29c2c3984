"""The demo's tasks: reproducible, split cleanly, and scored by what an answer does."""

from __future__ import annotations

import itertools
import json
import random
import re
from types import ModuleType
from typing import Any

import pytest

from examples.demo import corpus, words
from examples.demo.data import TASKS
from examples.demo.tasks import Record, code_task, json_task, support_task, tools_task

N = 60


def right_answer(record: Record) -> str:
    last = record["messages"][-1]
    if "tool_calls" not in last:
        return str(last["content"])
    function = last["tool_calls"][0]["function"]
    return tools_task.call_text(function["name"], function["arguments"])


@pytest.fixture(params=sorted(TASKS))
def task(request: pytest.FixtureRequest) -> ModuleType:
    return TASKS[request.param]


def test_the_same_seed_gives_the_same_requests(task: ModuleType) -> None:
    assert task.generate("heldout", N, 3) == task.generate("heldout", N, 3)
    assert task.generate("heldout", N, 3) != task.generate("heldout", N, 4)


def test_the_right_answer_scores_and_a_damaged_one_does_not(task: ModuleType) -> None:
    for record in task.generate("heldout", 20, 5):
        answer = right_answer(record)
        assert task.score(record, answer), answer
        assert not task.score(record, answer[:-1]), answer
        assert not task.score(record, f"Sure! {answer}")
        assert not task.score(record, "")


def test_another_requests_answer_does_not_score(task: ModuleType) -> None:
    first, *others = task.generate("heldout", 12, 6)
    wrong = [r for r in others if right_answer(r) != right_answer(first)]
    assert len(wrong) >= 10
    assert not any(task.score(first, right_answer(r)) for r in wrong)


def test_no_request_is_in_both_splits(task: ModuleType) -> None:
    train, heldout = (
        {r["messages"][0]["content"] for r in task.generate(s, 2000, 1)} for s in ("train", "heldout")
    )
    assert not train & heldout


PHRASES: list[dict[words.Split, tuple[str, ...]]] = [
    json_task.BEFORE, json_task.AFTER, json_task.RU_REQUESTS, json_task.VERBS, json_task.FORMS,
    *(sayings for domain in json_task.DOMAINS for _, sayings in domain.facts),
    code_task.REQUESTS,
    *(phrases for phrases, _ in (*code_task.ARITHMETIC, *code_task.CHOICES, *code_task.CONDITIONS, *code_task.CHANGES,
                                 *code_task.FILTERS, *code_task.REDUCTIONS, *code_task.STRINGS)),
    *(trouble.symptoms for trouble in (*support_task.TROUBLES, *support_task.RU_TROUBLES)),
    support_task.OPENINGS, support_task.CLOSINGS, support_task.RU_OPENINGS, support_task.RU_CLOSINGS,
    tools_task.BY_NAME, tools_task.BY_NOUN, tools_task.BY_NAME_NO_ARGUMENT, tools_task.BY_NOUN_NO_ARGUMENT,
    tools_task.PAIRS, tools_task.DESCRIPTIONS, tools_task.DESCRIPTIONS_NO_ARGUMENT, tools_task.NAMED_TOOLS,
]  # fmt: skip


def test_the_splits_share_no_phrase() -> None:
    for phrases in PHRASES:
        assert phrases["train"]
        assert phrases["heldout"]
        assert not [(h, t) for h in phrases["heldout"] for t in phrases["train"] if h.strip() in t]


@pytest.mark.parametrize(
    "make",
    [
        words.invent,
        words.invent_ru,
        words.identifier,
        words.town,
        words.person,
        words.product,
        tools_task.foreign,
    ],
)
def test_the_splits_share_no_invented_word(make: Any) -> None:
    rng = random.Random(1)
    train, heldout = ({make(rng, side) for _ in range(500)} for side in ("train", "heldout"))
    assert not train & heldout


def test_pools_are_split() -> None:
    for pool in (
        words.JOBS,
        words.ITEMS,
        words.COLOURS,
        words.TOPICS,
        words.RU_JOBS,
        words.RU_ITEMS,
        support_task.KINDS,
    ):
        train, heldout = (set(words.pool(pool, side)) for side in ("train", "heldout"))
        assert train | heldout == set(pool)
        assert not train & heldout
        assert heldout


def test_the_corpus_holds_no_answer_of_an_adapter_in_a_conversation() -> None:
    answers = re.compile(r"<\|im_start\|>assistant\n(.*?)<\|im_end\|>", re.DOTALL)
    said = [a for text in itertools.islice(corpus.documents(1), 3000) for a in answers.findall(text)]
    assert len(said) > 300
    for answer in said:
        assert not answer.startswith(("{", "def ", "Category:", "<tool_call>", "According to")), answer


def test_json_wants_the_right_types() -> None:
    record: Record = {
        "messages": [{"role": "assistant", "content": '{"age": 34, "name": "Mira"}'}],
        "check": {},
    }
    assert json_task.score(record, '{"name": "Mira", "age": 34}')
    assert not json_task.score(record, '{"name": "Mira", "age": "34"}')
    assert not json_task.score(record, '{"name": "Mira", "age": 34, "city": "Delport"}')


@pytest.mark.parametrize(
    "answer",
    [
        "def f(n):\n    return n * 7",
        "def f(x):\n    y = 7\n    return y * x",
    ],
)
def test_code_is_judged_by_what_it_returns(answer: str) -> None:
    assert code_task.score(_times_seven(), answer)


@pytest.mark.parametrize(
    "answer",
    [
        "def g(n):\n    return n * 7",
        "def f(n):\n    return n + 7",
        "def f(n):\n    return n * 7.0",
        "def f(n):\n    return",
        "import os\ndef f(n):\n    return n * 7",
        "def f(n):\n    return ().__class__ and n * 7",
        "def f(n):\n    return n * 7 if open('x') else n * 7",
        "def f(n):\n    return [n * 7 for i in range(10 ** 9)][0]",
        "def f(n):\n    return sum(1 for i in range(9999999999))",
    ],
)
def test_wrong_or_unsafe_code_fails(answer: str) -> None:
    assert not code_task.score(_times_seven(), answer)


def _times_seven() -> Record:
    check = {"name": "f", "samples": [0, 1, -3, 12]}
    return {"messages": [{"role": "assistant", "content": "def f(n):\n    return n * 7"}], "check": check}


def test_a_call_may_order_its_arguments_freely_and_nothing_else() -> None:
    record: Record = {"messages": [], "check": {"name": "f", "arguments": {"a": 1, "b": "x"}}}
    assert tools_task.score(record, tools_task.call_text("f", {"b": "x", "a": 1}))
    assert not tools_task.score(record, tools_task.call_text("g", {"a": 1, "b": "x"}))
    assert not tools_task.score(record, tools_task.call_text("f", {"a": "1", "b": "x"}))
    assert not tools_task.score(record, json.dumps({"name": "f", "arguments": {"a": 1, "b": "x"}}))
