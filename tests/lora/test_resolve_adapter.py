"""References and weights as callers write them, resolved to one adapter or a blend."""

import math
from pathlib import Path

import pytest

from adapterhub.errors import AdapterNotFoundError, InvalidRequestError
from adapterhub.lora.blending import Blend, SingleAdapter, parse_weights, resolve_adapter
from adapterhub.registry import AdapterRegistry


@pytest.fixture
def resolve(tiny_registry: Path):
    registry = AdapterRegistry(tiny_registry)
    return lambda wanted: resolve_adapter(wanted, registry.resolve)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("json", [("json", 1.0)]),
        ("json+support", [("json", 1.0), ("support", 1.0)]),
        ("json:0.7+support:0.3", [("json", 0.7), ("support", 0.3)]),
        ("json@3:.5+support@prod:-2", [("json@3", 0.5), ("support@prod", -2.0)]),
        ("a:1e-3+b:10.", [("a", 0.001), ("b", 10.0)]),
    ],
)
def test_parse_weights(text, wanted):
    assert parse_weights(text) == wanted


def test_the_order_of_the_parts_does_not_matter(resolve):
    blends = [
        resolve("support:0.3+json:0.7"),
        resolve("json@1:0.70+support:0.3"),
        resolve({"support": 0.3, "json": 0.7}),
    ]
    assert blends[0] == blends[1] == blends[2]
    assert blends[0].ref == blends[0].name == "json@1:0.7+support@1:0.3"
    assert isinstance(blends[0], Blend)
    assert (blends[0].main_card.name, blends[0].version) == ("json", None)


def test_the_main_card_has_the_largest_weight_then_the_first_name(resolve):
    assert resolve("support:0.5+json:0.5").main_card.name == "json"
    assert resolve("support:0.5+json:-2").main_card.name == "support"


def test_one_part_with_the_weight_1_is_that_adapter(resolve):
    for text in ("json", "json@1", "json:1", "json@1:1.0"):
        adapter = resolve(text)
        assert isinstance(adapter, SingleAdapter)
        assert (adapter.ref, adapter.name, adapter.version) == ("json@1", "json", 1)
        assert adapter.parts == ((adapter.main_card, 1.0),)
    for text in ("json:0.5", "json:-1", "json+support"):
        assert isinstance(resolve(text), Blend)


@pytest.mark.parametrize("weight", [0.1, 1 / 3, -1e-7, 10, 0, -0.0, 2.5e-300, math.pi])
def test_the_reference_resolves_to_the_same_blend(resolve, weight):
    blend = resolve({"json": weight, "code": 0.5})
    assert resolve(blend.ref) == blend
    assert "-0" not in blend.ref or weight < 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("json:", "weight"),
        ("json:x+code:1", "weight"),
        ("json:nan+code:1", "weight"),
        ("json:1e5+code:1", "from -10 to 10"),
        ("json:10.1+code:1", "from -10 to 10"),
        ("json:0.5:0.5", "weight"),
        ("json:0_1", "weight"),
        ("json:١", "weight"),
        ("json: 0.5", "weight"),
        ("json++code", "name"),
        ("+", "name"),
        ("json=0.5+code=0.5", "not a part of a blend"),
        ("0.5*json", "not a part of a blend"),
        ("json:0.5+json:0.5", "twice"),
        ("json+json@1", "twice"),
        ("auto:0.5+json:0.5", "no adapter"),
        ("base+json", "no adapter"),
        ("__base__:1", "no adapter"),
        ("+".join(f"a{n}" for n in range(9)), "1 to 8 parts"),
    ],
)
def test_invalid_references_are_refused(resolve, text, words):
    with pytest.raises(InvalidRequestError, match=words):
        resolve(text)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, 10.5, 10**400, True, "1", None])
def test_invalid_weights_are_refused(resolve, weight):
    with pytest.raises(InvalidRequestError, match="no number from -10 to 10"):
        resolve({"json": weight, "code": 0.5})


def test_no_parts_are_refused(resolve):
    with pytest.raises(InvalidRequestError, match="1 to 8 parts"):
        resolve({})


def test_an_unknown_part_is_not_found(resolve):
    with pytest.raises(AdapterNotFoundError, match="Did you mean 'code'"):
        resolve("json:0.7+cod:0.3")
