import json
import subprocess
import sys

import pytest

from adapterhub import AdapterRegistry, AdapterRouter
from adapterhub.errors import RoutingError

EXAMPLES = {
    "json": ["turn this sentence into json", "extract name and city as json", "give me the fields as json"],
    "code": ["write a python function", "python code that adds two numbers", "a function to reverse a list"],
    "support": ["my printer shows an error", "the screen stays black", "my router is broken, please help"],
}


@pytest.fixture(scope="module")
def router() -> AdapterRouter:
    return AdapterRouter.fit(EXAMPLES)


@pytest.mark.parametrize(
    ("text", "adapter"),
    [
        ("the fields name and age as json please", "json"),
        ("a python function that adds three numbers", "code"),
        ("my router shows an error", "support"),
    ],
)
def test_a_request_like_the_examples_goes_to_their_adapter(router, text, adapter):
    decision = router.route(text)
    assert (decision.adapter, decision.reason, decision.fallback) == (adapter, "matched", False)
    assert decision.confidence >= decision.threshold
    assert next(iter(decision.scores)) == adapter


@pytest.mark.parametrize(
    "text", ["Hello there!", "What is the capital of Spain?", "Привет, как дела?", "???", ""]
)
def test_small_talk_goes_to_the_base(router, text):
    decision = router.route(text)
    assert decision.adapter is None
    assert decision.fallback
    assert decision.reason in ("none_of_these", "below_threshold")


def test_every_adapter_has_a_score(router):
    scores = router.route("python").scores
    assert scores.keys() == EXAMPLES.keys()
    assert 0 < sum(scores.values()) < 1
    assert list(scores.values()) == sorted(scores.values(), reverse=True)


def test_one_adapter_is_enough():
    router = AdapterRouter.fit({"code": EXAMPLES["code"]})
    assert router.route("write a python function that adds").adapter == "code"
    assert router.route("Good morning").adapter is None


def test_a_threshold_can_be_set_for_one_adapter():
    router = AdapterRouter.fit(EXAMPLES, thresholds={"code": 0.999})
    decision = router.route("write a function that adds two numbers")
    assert (decision.adapter, decision.threshold, decision.reason) == (None, 0.999, "below_threshold")


def test_negatives_take_requests_away():
    text = "python snakes in the zoo"
    assert (
        AdapterRouter.fit(EXAMPLES).route(text).scores["code"]
        > (
            AdapterRouter.fit(EXAMPLES, negatives=["a python in the zoo", "snakes", "the zoo"])
            .route(text)
            .scores["code"]
        )
    )


def test_the_order_of_adapters_has_no_influence():
    backwards = {name: list(reversed(texts)) for name, texts in reversed(EXAMPLES.items())}
    text = "json of a python error"
    assert AdapterRouter.fit(backwards).route(text) == AdapterRouter.fit(EXAMPLES).route(text)


def test_a_very_long_request_is_decided_too(router):
    assert router.route("write a python function " + "x " * 1_000_000).confidence <= 1


def test_nothing_to_learn_from_is_an_error():
    with pytest.raises(RoutingError, match="example"):
        AdapterRouter.fit({"json": [" "], "code": []})


def test_cards_train_it(tiny_registry):
    registry = AdapterRegistry(tiny_registry)
    router = AdapterRouter.from_cards(registry.list())
    assert router.adapters == ("code", "json", "support")
    assert router.route("the router shows an error again").adapter == "support"


def test_another_process_decides_the_same(router):
    code = (
        "import json, sys; from adapterhub import AdapterRouter;"
        "print(json.dumps(AdapterRouter.fit(json.load(sys.stdin)).route('python json error').scores))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(EXAMPLES), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == router.route("python json error").scores
