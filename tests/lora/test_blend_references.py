"""Blends as people write them."""

import math
from pathlib import Path

import pytest

from adapterhub.errors import AdapterNotFoundError, InvalidRequestError
from adapterhub.lora.blending.references import Blend, parse_weights
from adapterhub.registry import AdapterRegistry


@pytest.fixture
def find(tiny_registry: Path):
    registry = AdapterRegistry(tiny_registry)
    return lambda wanted: Blend.find(wanted, registry.resolve)


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
def test_what_is_written_is_read(text, wanted):
    assert parse_weights(text) == wanted


def test_the_order_of_the_parts_does_not_matter(find):
    blends = [
        find("support:0.3+json:0.7"),
        find("json@1:0.70+support:0.3"),
        find({"support": 0.3, "json": 0.7}),
    ]
    assert blends[0] == blends[1] == blends[2]
    assert blends[0].ref == blends[0].name == "json@1:0.7+support@1:0.3"
    assert (blends[0].main.name, blends[0].version, blends[0].is_plain) == ("json", None, False)


def test_of_equal_weights_the_first_by_name_leads(find):
    assert find("support:0.5+json:0.5").main.name == "json"
    assert find("support:0.5+json:-2").main.name == "support"


def test_one_part_with_the_weight_1_is_that_adapter(find):
    for text in ("json", "json@1", "json:1", "json@1:1.0"):
        blend = find(text)
        assert (blend.is_plain, blend.ref, blend.name, blend.version) == (True, "json@1", "json", 1)
    assert not find("json:0.5").is_plain
    assert not find("json:-1").is_plain


@pytest.mark.parametrize("weight", [0.1, 1 / 3, -1e-7, 10, 0, -0.0, 2.5e-300, math.pi])
def test_the_reference_means_the_same_blend_again(find, weight):
    blend = find({"json": weight, "code": 0.5})
    assert find(blend.ref) == blend
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
        ("json:0.5+json:0.5", "twice"),
        ("json+json@1", "twice"),
        ("auto:0.5+json:0.5", "no adapter"),
        ("base+json", "no adapter"),
        ("__base__:1", "no adapter"),
        ("+".join(f"a{n}" for n in range(9)), "1 to 8 parts"),
    ],
)
def test_what_means_nothing_is_refused(find, text, words):
    with pytest.raises(InvalidRequestError, match=words):
        find(text)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, 10.5, 10**400, True, "1", None])
def test_weights_that_are_no_weights_are_refused(find, weight):
    with pytest.raises(InvalidRequestError, match="no number from -10 to 10"):
        find({"json": weight, "code": 0.5})


def test_nothing_is_no_blend(find):
    with pytest.raises(InvalidRequestError, match="1 to 8 parts"):
        find({})


def test_an_unknown_part_is_not_found(find):
    with pytest.raises(AdapterNotFoundError, match="Did you mean 'code'"):
        find("json:0.7+cod:0.3")
