"""The second demo's tasks: their held-out requests are new, and the programs judge answers as a person would."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from adapterhub import AdapterRegistry
from adapterhub._files import sha256_file
from adapterhub.demo import demo_registry_folder
from adapterhub.registry import AdapterCard
from adapterhub.training.config import FinetuneConfig
from examples.demo.tasks import Record
from examples.demo_real import calculate, extraction, intents, maths
from examples.demo_real.data import SHIPPED, made, read, write
from examples.demo_real.tasks import TASKS


def with_answer(answer: str) -> Record:
    return {
        "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": answer}],
        "check": {},
    }


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_200_requests_whose_own_answers_are_right(name: str):
    task = TASKS[name]
    records = task.heldout(200)
    assert len(records) == 200
    assert records == task.heldout(200)
    assert all(task.score(record, record["messages"][-1]["content"]) for record in records)
    assert not any(task.score(record, "I do not know.") for record in records)


@pytest.mark.parametrize(
    "card", AdapterRegistry(demo_registry_folder(real=True)).list(), ids=lambda card: card.name
)
def test_a_shipped_adapter_was_trained_on_the_data_that_the_repository_makes(
    card: AdapterCard, tmp_path: Path
):
    data = SHIPPED / f"{card.name}-train.jsonl"
    if card.name in made():
        data = tmp_path / data.name
        write(data, made()[card.name])
    assert card.datasets == (f"{data.name} sha256:{sha256_file(data)}",)


@pytest.mark.parametrize("name", TASKS)
def test_no_heldout_request_is_in_the_training_data(name: str):
    training = made().get(name) or read(f"{name}-train.jsonl")
    asked = {record["messages"][0]["content"] for record in training}
    assert not asked & {record["messages"][0]["content"] for record in TASKS[name].heldout(200)}


def test_held_out_texts_have_other_names_and_templates():
    kinds = ("name", "product", "company", "city")

    def words(split: extraction.Split) -> set[str]:
        answers = (json.loads(r["messages"][1]["content"]) for r in extraction.generate(split, 300, 5))
        return {str(answer[kind]) for answer in answers for kind in kinds if kind in answer}

    assert len(words("heldout")) > 50
    assert not words("heldout") & words("train")
    templates = [{*domain.train} & {*domain.heldout} for domain in extraction.SEEN.values()]
    assert not any(templates)
    asked = [
        record
        for record in extraction.generate("heldout", 300, 5)
        if record["check"]["part"] == "unseen keys"
    ]
    assert 40 < len(asked) < 80
    keys = {key for record in made()["extract"] for key in json.loads(record["messages"][1]["content"])}
    unseen = {key for domain in extraction.UNSEEN.values() for key in domain.keys}
    assert unseen & keys == {"day"}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"name": "Anna Smith", "age": 41}', True),
        ('Here it is:\n```json\n{"age": "41", "name": "anna smith"}\n```', True),
        ('{"name": "Anna Smith"}', False),
        ('{"name": "Anna Smith", "age": 41, "city": "Oslo"}', False),
        ('{"name": "Anna Smith", "age": 14}', False),
        ('{"name": "Anna Smith", "age": 41', False),
        ("Anna Smith, 41", False),
    ],
)
def test_an_extraction_is_right_with_exactly_its_keys_and_values(answer: str, right: bool):
    assert extraction.score(with_answer('{"name": "Anna Smith", "age": 41}'), answer) is right


def test_held_out_problems_have_other_templates_names_and_things():
    assert not any({*kind.train} & {*kind.heldout} for kind in calculate.KINDS)
    for words in (calculate._NAMES, calculate._THINGS, calculate._BOXES):
        assert not {*re.split(r"[ |]", words["train"])} & {*re.split(r"[ |]", words["heldout"])}


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_made_problem_names_its_numbers_and_has_a_whole_positive_answer(split: extraction.Split):
    for record in calculate.generate(split, 300, 5):
        problem, expression = (message["content"] for message in record["messages"])
        assert {*re.findall(r"\d+", expression)} == {*re.findall(r"\d+", problem)}
        result = calculate.value(expression)
        assert result is not None
        assert result > 0
        assert result == int(result)


def test_steps_of_gsm8k_become_one_expression_with_the_final_number():
    def problem(answer: str) -> Record:
        asked = {"role": "user", "content": "How many?"}
        return {"messages": [asked, {"role": "assistant", "content": answer}], "check": {}}

    def expressions(answer: str) -> list[str]:
        return [record["messages"][1]["content"] for record in calculate.of_gsm8k([problem(answer)])]

    assert expressions("48/2=24\n48+24=72\n#### 72") == ["48+(48/2)"]
    assert expressions("4*3=12\n20-12=8\n#### 8") == ["20-4*3"]
    assert expressions("2+3=5\n#### 10") == []
    assert expressions("1+1=2\n2+1=3\n3+1=4\n#### 4") == []
    assert len(calculate.of_gsm8k(read("maths-train.jsonl"))) == 246


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("(30-12)/4", 4.5),
        ("48 + 48/2", 72),
        ("7", 7),
        ("1/0", None),
        ("9**9", None),
        ("abs(3)", None),
        ("-3", None),
        ("True", None),
        ("", None),
    ],
)
def test_a_calculator_knows_numbers_and_four_operations(expression: str, result: float | None):
    assert calculate.value(expression) == result


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("48+48/2", True),
        ("(48/2)*3", True),
        ("Half of 48 is 24, and 48 + 24 is 72.", True),
        ("#### 72", True),
        ("#### 72\n\n#### 73\n\n####", True),
        ("48*2", False),
        ("48+48/", False),
        ("", False),
    ],
)
def test_an_expression_is_right_by_its_value(answer: str, right: bool):
    assert calculate.score(with_answer("48+48/2"), answer) is right


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("48/2=24\n48+24=72\n#### 72", 72),
        ("#### 1,250 dollars, which is 3 more", 1250),
        ("So 3 bags of 12 make 36 apples.", 36),
        ("It costs $7.50.", 7.5),
        ("#### -3", -3),
        ("none", None),
    ],
)
def test_the_final_number_is_that_after_the_mark_or_the_last_one(answer: str, number: float | None):
    assert maths.final_number(answer) == number


def test_an_answer_in_maths_is_its_annotations_and_the_number():
    row = {
        "question": "How many?",
        "answer": "First 48/2 = <<48/2=24>>24.\nThen <<1000+24=1024>>1,024.\n#### 1,024",
    }
    (record,) = maths.training([row])
    assert record["messages"][1]["content"] == "48/2=24\n1000+24=1024\n#### 1024"
    assert maths.training([{"question": "How many?", "answer": "It is one.\n#### 1"}]) == []


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("bill_balance", True),
        ("The intent is **Bill balance**.", True),
        ("balance", False),
        ("bill_due or bill_balance", False),
        ("", False),
    ],
)
def test_the_intent_that_is_named_first_counts(answer: str, right: bool):
    assert intents.score(with_answer("bill_balance"), answer) is right


def test_every_intent_has_100_training_sentences():
    answers = [record["messages"][1]["content"] for record in read("intents-train.jsonl")]
    assert {intent: answers.count(intent) for intent in {*answers}} == dict.fromkeys(intents.INTENTS, 100)


@pytest.mark.parametrize("name", TASKS)
def test_its_configuration_trains_attention_only_under_the_scored_system_prompt(name: str):
    config = FinetuneConfig.load(SHIPPED.parent / "finetune" / f"{name}.yaml")
    assert (config.name, config.base, config.lora.r) == (name, "adapterhub-demo-real", 8)
    assert config.lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert config.card.prompt.system == TASKS[name].system
    assert config.card.prompt.generation["max_tokens"] == TASKS[name].max_tokens
    assert re.search(r"(data|build/demo-real)/\w+-train\.jsonl$", str(config.data.train))
