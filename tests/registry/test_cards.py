from __future__ import annotations

import json
from typing import Any

import pytest

from adapterhub.errors import AdapterInvalidError, InvalidRequestError
from adapterhub.registry import AdapterCard, Evaluation, Lineage, Parent, PeftInfo, PromptProfile, Routing
from adapterhub.registry.cards import CardFields, now


def card(**fields: Any) -> AdapterCard:
    required = {
        "name": "json",
        "version": 1,
        "digest": "sha256:0",
        "peft": PeftInfo(r=8, lora_alpha=16, dtype="F32", size_bytes=10),
        "created_at": now(),
        "updated_at": now(),
    }
    return AdapterCard(**{**required, **fields})


FULL = card(
    description="Ответ в JSON",
    tags=("a", "b"),
    language=("en", "ru"),
    evaluation=(Evaluation(task_type="t", dataset_name="d", metric_type="exact_match", metric_value=0.96),),
    prompt=PromptProfile(system="Be brief.", stop=("\n",), generation={"max_tokens": 20}),
    routing=Routing(examples=("give me json",), threshold=0.5),
    lineage=Lineage(method="blend", parents=(Parent(name="a", version=2, weight=0.5),)),
)


def test_a_card_survives_its_json() -> None:
    assert AdapterCard.from_json(FULL.to_json()) == FULL
    assert AdapterCard.from_json(card(aliases=("prod",)).to_json()).aliases == ()


def test_the_file_is_short_and_ordered() -> None:
    text = FULL.to_json().decode()
    assert text.endswith("}\n")
    assert "Ответ в JSON" in text
    assert [*json.loads(text)][:3] == ["name", "version", "digest"]
    assert json.loads(card().to_json()).keys() == {
        "name",
        "version",
        "digest",
        "peft",
        "created_at",
        "updated_at",
    }


def test_cards_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        FULL.description = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        FULL.peft.r = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"[]", b"\xff", FULL.to_json().replace(b'"digest"', b'"secret"'), FULL.to_json()[:-20]],
)
def test_content_that_is_no_card(text: bytes) -> None:
    with pytest.raises(AdapterInvalidError, match=r"card\.json is not a card"):
        AdapterCard.from_json(text)


def test_errors_do_not_repeat_values() -> None:
    text = FULL.to_json().replace(b'"Be brief."', b'["hunter2"]')
    with pytest.raises(AdapterInvalidError) as caught:
        AdapterCard.from_json(text)
    assert "prompt.system" in caught.value.message
    assert "hunter2" not in str(caught.value)


def test_changes_to_a_group_keep_its_other_settings() -> None:
    changed = FULL.changed({"routing": {"keywords": ["json"]}, "description": "new"})
    assert changed.routing == Routing(examples=("give me json",), threshold=0.5, keywords=("json",))
    assert (changed.description, changed.tags) == ("new", FULL.tags)
    assert FULL.changed({"routing": Routing(keywords=("x",))}).routing == Routing(keywords=("x",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digest": "sha256:1"}, "'digest' cannot be set"),
        ({"version": 2}, "'version' cannot be set"),
        ({"color": "red"}, "'color' cannot be set"),
        ({"status": "fine"}, "status"),
        ({"routing": {"threshold": 2}}, "threshold"),
        ({"routing": {"color": "red"}}, "routing.color"),
        ({"tags": "one"}, "tags"),
        ({"prompt": {"format": "wild"}}, "prompt.format"),
        ({"prompt": {"stop": [""]}}, "prompt.stop.0"),  # what no request could be served with
        ({"prompt": {"stop": ["x"] * 65}}, "prompt.stop"),
    ],
)
def test_changes_that_cannot_be_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        FULL.changed(changes)


def test_every_field_that_can_be_set_is_a_field() -> None:
    assert CardFields.__annotations__.keys() <= AdapterCard.model_fields.keys()


def test_every_field_is_documented() -> None:
    assert [name for name, field in AdapterCard.model_fields.items() if not field.description] == []


def test_ref() -> None:
    assert FULL.ref == "json@1"


def test_a_card_that_could_not_be_read_again_is_not_written() -> None:
    big = card(routing=Routing(examples=("x" * 2**20,)))
    with pytest.raises(InvalidRequestError, match="would be larger"):
        big.to_json()
