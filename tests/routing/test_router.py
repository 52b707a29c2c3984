import json
import subprocess
import sys
import threading
import time

import pytest

from adapterhub import AdapterRegistry, AdapterRouter
from adapterhub._patterns import SafePattern
from adapterhub.errors import DatasetError, InvalidRequestError, RoutingError
from adapterhub.routing import rules
from adapterhub.routing.classifier.calibration import Policy
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.feedback.corrections import read_corrections
from adapterhub.routing.feedback.decision_log import DecisionLog
from adapterhub.routing.filters import RouteFilter
from adapterhub.routing.routes import Route
from tests.timing import least_seconds

EXAMPLES = {
    "json": [
        "turn this sentence into json",
        "extract name and city as json",
        "give me the fields as json",
        "json with the keys title and year please",
        "put the host and the date into a json object",
        "what is the json of this record",
    ],
    "code": [
        "write a python function",
        "python code that adds two numbers",
        "a function to reverse a list",
        "define a function which doubles its argument",
        "code that counts the words of a text",
        "a python one-liner that sorts a list",
    ],
    "support": [
        "my printer shows an error",
        "the screen stays black",
        "my router is broken, please help",
        "the laptop does not start any more",
        "why is the wifi of my phone so slow",
        "my headphones make a strange noise",
    ],
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
    assert decision.threshold <= decision.confidence <= 1
    assert (decision.best, decision.scores[adapter]) == (adapter, decision.score)
    assert decision.matched in EXAMPLES[adapter]
    assert (decision.script, decision.router_version) == ("latin", router.version)


@pytest.mark.parametrize(
    "text", ["Hello there!", "What is the capital of Spain?", "Привет, как дела?", "???"]
)
def test_small_talk_goes_to_the_base(router, text):
    decision = router.route(text)
    assert decision.adapter is None
    assert decision.fallback
    assert decision.reason in ("none_of_these", "below_threshold")


def test_every_adapter_has_a_score(router):
    decision = router.route("python")
    assert decision.scores.keys() == EXAMPLES.keys()
    ranked = decision.ranked()
    assert [score for _, score in ranked] == sorted(decision.scores.values(), reverse=True)
    assert (ranked[0], decision.ranked(1)) == ((decision.best, decision.score), ranked[:1])


def test_the_last_user_message_is_routed(router):
    said = [
        {"role": "user", "content": "write a python function"},
        {"role": "assistant", "content": "def f(): ..."},
        {"role": "user", "content": [{"type": "text", "text": "the screen of my phone stays black"}]},
    ]
    assert router.route(said) == router.route("the screen of my phone stays black")
    assert router.route(said).adapter == "support"


def test_one_adapter_is_enough():
    router = AdapterRouter.fit({"code": EXAMPLES["code"]})
    assert router.route("write a python function that adds").adapter == "code"
    assert router.route("Good morning").adapter is None


def test_descriptions_and_tags_alone_are_enough():
    router = AdapterRouter.fit(
        {},
        descriptions={"code": "Writes Python functions", "support": "Troubles with devices"},
        tags={"code": ["programming"], "support": ["printer", "screen", "wifi"]},
    )
    assert router.route("trouble with the wifi").best == "support"
    assert router.route("python programming").best == "code"


def test_a_threshold_can_be_set_for_one_adapter():
    router = AdapterRouter.fit(EXAMPLES, thresholds={"code": 0.999})
    decision = router.route("write a function that adds two numbers")
    assert (decision.adapter, decision.threshold) == (None, 0.999)
    assert decision.reason == "below_threshold"


def test_negatives_of_all_and_of_one_take_requests_away(router):
    text, snakes = "python snakes in the zoo", ["a python in the zoo", "python snakes", "feed the python"]
    before = router.route(text).scores["code"]
    assert before > AdapterRouter.fit(EXAMPLES, negatives=snakes).route(text).scores["code"] + 0.1
    of_one = AdapterRouter.fit(EXAMPLES, negatives={"code": snakes}).route(text).scores
    assert before > of_one["code"] + 0.1


def test_a_shipped_negative_that_is_an_example_is_left_out():
    examples = {
        **EXAMPLES,
        "jokes": ["Tell me a joke", "a joke about cats", "say something funny", "make me laugh"],
    }
    model = AdapterRouter.fit(examples).model
    against = [sample.text for sample in model.training.texts if sample.label == "~none"]
    assert "Hello" in against
    assert "Tell me a joke" not in against


def test_the_order_of_adapters_has_no_influence(router):
    backwards = {name: list(reversed(texts)) for name, texts in reversed(EXAMPLES.items())}
    assert AdapterRouter.fit(backwards).route("json of a python error") == router.route(
        "json of a python error"
    )


def test_two_routes_too_close_are_ambiguous():
    router = AdapterRouter.fit(EXAMPLES, policy=Policy(margin=10.0), thresholds=dict.fromkeys(EXAMPLES, 0.0))
    assert (router.route("write a python function").reason, router.route("write").adapter) == (
        "ambiguous",
        None,
    )


# Forced, rules, filters, fallback


def test_a_caller_can_force_a_route(router):
    decision = router.route("hello", adapter="json")
    assert (decision.adapter, decision.reason, decision.confidence) == ("json", "forced", 1.0)
    with pytest.raises(InvalidRequestError, match="unknown"):
        router.route("hello", adapter="unknown")


def test_rules_come_before_the_classifier():
    router = AdapterRouter.fit(
        EXAMPLES, phrases={"json": ["as a record"]}, patterns={"code": [r"\bdef \w+\("]}
    )
    phrase = router.route("my printer shows an error, written AS A  RECORD")
    assert (phrase.adapter, phrase.reason, phrase.matched) == ("json", "rule", "as a record")
    assert router.route("what does def f(x) mean").adapter == "code"
    assert router.route("my printer shows an error as a records keeper").adapter == "support"
    denied = router.route("the fields as a record in json", where=RouteFilter.of(deny=["json"]))
    assert denied.adapter != "json"


def test_a_pattern_that_times_out_is_skipped(caplog):
    router = AdapterRouter.fit(EXAMPLES, patterns={"code": [r"(a|aa)+$"]})
    decision = router.route("a" * 60 + "! my printer shows an error")
    assert decision.reason != "rule"
    assert "patterns of code take too long" in caplog.text
    assert "printer" not in caplog.text


UNUSABLE = ["(", "a" * 501, "((a{100}){100}){100}", "(?:" + "a?" * 230 + "){20000}", "a{99999999}"]


@pytest.mark.parametrize("pattern", UNUSABLE)
def test_an_unusable_pattern_is_refused(pattern):
    with pytest.raises(InvalidRequestError, match="pattern"):
        AdapterRouter.fit(EXAMPLES, patterns={"code": [pattern]})


def test_an_unusable_phrase_and_too_many_rules_are_refused():
    for phrases in ([" "], ["a" * 501], ["a"] * 101):
        with pytest.raises(InvalidRequestError, match="phrase"):
            AdapterRouter.fit(EXAMPLES, phrases={"code": phrases})


def test_an_unusable_stored_rule_does_not_stop_the_routing_of_others(caplog):
    usable = r"\bdef \w+\("
    model = RouterModel.fit(
        [
            Route.make("code", EXAMPLES["code"]).model_copy(
                update={"patterns": (*UNUSABLE, usable), "phrases": ("", "x" * 501)}
            ),
            Route.make("json", EXAMPLES["json"], phrases=["as a record"]),
        ]
    )
    router = AdapterRouter(model)
    assert router.route("what does def f(x) mean").adapter == "code"
    assert router.route("written as a record").matched == "as a record"
    assert caplog.text.count("is left out") == len(UNUSABLE) + 2
    (*found,) = (one for one in router.health() if one.kind == "unusable_rule")
    assert [one.adapters for one in found] == [("code",)] * (len(UNUSABLE) + 2)


def test_all_patterns_of_a_request_share_a_time_limit():
    slow = [rf"(a|aa)+{n}$" for n in range(60)]
    router = AdapterRouter.fit(EXAMPLES, patterns={"code": slow, "json": slow})
    before = time.thread_time()
    assert router.route("a" * 60 + "! my printer shows an error").reason != "rule"
    assert time.thread_time() - before < 0.6


def test_slow_patterns_of_one_adapter_leave_time_for_those_of_others(caplog):
    slow = [rf"(a|aa)+{n}$" for n in range(60)]
    router = AdapterRouter.fit(EXAMPLES, patterns={"code": slow, "json": ["^aaa"]})
    assert router.route("a" * 60 + "! my printer shows an error").adapter == "json"
    assert caplog.text.count("take too long") == 1


def test_compiling_patterns_takes_nothing_from_the_time_to_match_them(monkeypatch):
    class SlowToCompile(SafePattern):
        def __init__(self, pattern: str, *, ignore_case: bool = False) -> None:
            end = time.thread_time() + 2 * rules.RULES_SECONDS
            while time.thread_time() < end:
                pass
            super().__init__(pattern, ignore_case=ignore_case)

    monkeypatch.setattr(rules, "SafePattern", SlowToCompile)
    rules._compiled_pattern.cache_clear()
    router = AdapterRouter.fit(EXAMPLES, patterns={"code": ["one pattern"], "json": ["another one"]})
    assert router.route("by another one").matched == "another one"


def test_filters_narrow_the_choice(router):
    text = "write a python function"
    assert router.route(text, where=RouteFilter.of(allow=["json", "support"])).adapter != "code"
    assert router.route(text, where=RouteFilter.of(allow=["json", "support"])).best == "code"
    nothing = router.route(text, where=RouteFilter.of(tags=["no such tag"]))
    assert (nothing.adapter, nothing.reason) == (None, "filtered")


def test_a_disabled_adapter_is_never_chosen():
    model = RouterModel.fit(
        [
            Route.make(name, texts, status="disabled" if name == "code" else "ready")
            for name, texts in EXAMPLES.items()
        ]
    )
    assert AdapterRouter(model).route("write a python function").adapter != "code"


def test_a_filter_holds_for_the_fallback_too():
    router, request = AdapterRouter.fit(EXAMPLES, fallback="support"), "Hello there!"
    assert router.route(request, where=RouteFilter.of(allow=["support"])).adapter == "support"
    for where in (RouteFilter.of(allow=["json"]), RouteFilter.of(deny=["support"])):
        assert router.route(request, where=where).adapter is None


def test_a_fallback_answers_below_the_threshold():
    fixed = AdapterRouter.fit(EXAMPLES, fallback="support")
    decision = fixed.route("Hello there!")
    assert (decision.adapter, decision.fallback) == ("support", True)
    chosen = AdapterRouter.fit(
        EXAMPLES, fallback=lambda text, decision: decision.best if "!" in text else None
    )
    assert chosen.route("Hello there!").adapter in EXAMPLES
    assert chosen.route("Hello there").adapter is None


def test_a_router_in_shadow_mode_only_logs(tmp_path):
    router = AdapterRouter.fit(EXAMPLES, shadow=True, log=DecisionLog(tmp_path / "log.jsonl"))
    decision = router.route("write a python function")
    assert (decision.adapter, decision.reason, decision.best) == (None, "shadow", "code")
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert (json.loads(line)["best"], json.loads(line)["reason"]) == ("code", "shadow")


# Bad and strange input


@pytest.mark.parametrize("text", ["", "   \n", "\t"])
def test_a_request_without_text_gets_a_decision(router, text):
    decision = router.route(text)
    assert (decision.adapter, decision.reason, decision.fallback) == (None, "empty", True)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_000_000,
        "ab " * 3_000_000,
        "```\n" * 100_000,
        "```\nprint(1)\n```",
        "\0\0\0",
        "ﷺ" * 5_000,
        "\ud800 lone surrogate",
        "ɐ ʇxǝʇ ᚠᛇᚻ 𐌰𐌱 ".join(map(str, range(1000))),
        "?" * 100_000,
        ". ".join("no" for _ in range(100_000)),
    ],
)
def test_strange_texts_are_decided_quickly(router, text):
    decision, seconds = least_seconds(lambda: router.route(text), enough=0.05)
    assert seconds < 0.05
    assert 0 <= decision.confidence <= 1


def test_code_is_left_out_and_reported(router):
    decision = router.route("my printer shows an error:\n```\nwrite a python function def f(): json\n```")
    assert (decision.adapter, decision.has_code) == ("support", True)


def test_a_request_is_found_among_sentences_about_other_things(router):
    filler = "I moved here in spring. The weather has been fine. We had visitors last week. "
    decision = router.route(f"{filler} Write a python function that adds numbers. {filler}")
    assert decision.adapter == "code"


@pytest.mark.parametrize("examples", [{}, {"json": [" "], "code": []}])
def test_nothing_to_train_on_is_a_routing_error(examples):
    with pytest.raises(RoutingError, match="nothing to route by"):
        AdapterRouter.fit(examples)


@pytest.mark.parametrize("examples", [{"json": "one text"}, {"~none": ["a"]}, {"json": [3]}])
def test_examples_that_are_not_valid_are_an_invalid_request(examples):
    with pytest.raises(InvalidRequestError):
        AdapterRouter.fit(examples)


def test_fields_for_an_unknown_route_are_refused():
    with pytest.raises(InvalidRequestError, match="jsno"):
        AdapterRouter.fit(EXAMPLES, thresholds={"jsno": 0.5})
    with pytest.raises(InvalidRequestError, match="not valid"):
        AdapterRouter.fit(EXAMPLES, thresholds={"json": 1.5})


# Changes


def test_a_route_is_added_updated_and_removed_immediately(router):
    router = AdapterRouter(router.model)
    fitted = router.version
    poems = ["write a poem about the sea", "a poem of four lines", "verses about rain", "rhyme about a cat"]
    router.add("poems", poems)
    assert router.route("please write a poem about rain").adapter == "poems"
    with pytest.raises(InvalidRequestError, match="already"):
        router.add("poems", poems)
    assert router.settle(60)
    whole = AdapterRouter.fit({**EXAMPLES, "poems": poems})
    assert router.version == whole.version
    assert router.route("verses about the sea") == whole.route("verses about the sea")

    router.update("poems", ["sing a song", "a song about summer", "hum a tune", "melody of that song"])
    assert router.route("a song about winter").best == "poems"
    router.remove("poems")
    assert "poems" not in router.adapters
    assert "poems" not in router.route("please write a poem about rain").scores
    assert router.settle(60)
    assert router.version == fitted
    with pytest.raises(InvalidRequestError, match="no route"):
        router.remove("poems")


def test_removing_a_route_leaves_the_others_as_they_were(router):
    text = "a python function that adds three numbers"
    before, after = router.route(text), AdapterRouter(router.model.without_route("support")).route(text)
    lead = after.scores["code"] - before.scores["code"]
    assert after.scores["json"] - before.scores["json"] == pytest.approx(lead, abs=1e-6)
    assert after.adapter == "code"


def test_adding_a_route_takes_its_requests_from_the_nearest_others(router):
    poems = ["a poem about a python", "a poem on functions", "write a poem on code", "python poem please"]
    model = router.model.with_route(Route.make("poems", poems))
    text = "write a poem about python"
    before, after = router.route(text), AdapterRouter(model).route(text)
    assert (before.best, after.best) == ("code", "poems")
    assert after.scores["code"] < before.scores["code"]
    assert (model.version[-2:], set(model.added)) == ("+1", {"poems", *EXAMPLES})


def test_many_changes_without_a_full_fit(router):
    model, changed = router.model, {}
    for topic in ("poems", "songs", "cooking", "letters"):
        changed[topic] = [f"{topic} please", f"something about {topic}", f"I want {topic}", f"more {topic}"]
        model = model.with_route(Route.make(topic, changed[topic]))
    model = (
        model.without_route("songs")
        .without_route("json")
        .with_route(Route.make("cooking", ["a stew", "bake it"]))
    )
    decide = AdapterRouter(model).route
    assert model.names == ("code", "cooking", "letters", "poems", "support")
    assert decide("more poems").best == "poems"
    assert decide("bake a stew").best == "cooking"
    assert decide("write a python function").best == "code"
    assert decide("something about songs").matched != "something about songs"


def test_readers_never_see_a_partial_change(router):
    router, failures, stop = AdapterRouter(router.model), [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            scores = router.route("write a poem in python").scores
            if len(scores) not in (3, 4):
                failures.append(scores)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(5):
        router.add("poems", ["write a poem about the sea", "a poem of four lines"])
        router.remove("poems")
    stop.set()
    for reader in readers:
        reader.join()
    assert router.settle(60)
    assert not failures
    assert router.adapters == ("code", "json", "support")


# Registries


def test_cards_train_it(own_registry):
    registry = AdapterRegistry(own_registry)
    router = AdapterRouter.from_registry(registry)
    assert router.adapters == ("code", "json", "support")
    assert router.route("the router shows an error again").best == "support"
    assert router.stale(registry) == ()


def test_a_changed_card_makes_it_stale(own_registry):
    registry = AdapterRegistry(own_registry)
    router = AdapterRouter.from_registry(registry)
    registry.update(
        "json", routing={"examples": ["records as json", "json again"], "phrases": ["as a record"]}
    )
    assert router.stale(registry) == ("json",)
    assert router.sync(registry.list()) == ("json",)
    assert router.stale(registry) == ()
    assert router.route("tell it as a record").reason == "rule"
    assert router.settle(60)


# Files


def test_another_process_decides_the_same(router, tmp_path):
    path = tmp_path / "router.skops"
    router.save(path)
    texts = ["python json error", "turn it into json", "привет", "the screen. It stays black."]
    code = (
        "import json, sys; from adapterhub import AdapterRouter; from dataclasses import asdict;"
        f"r = AdapterRouter.load({str(path)!r});"
        "print(json.dumps([asdict(r.route(text)) for text in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    mine = [router.route(text) for text in texts]
    assert json.loads(done.stdout) == json.loads(json.dumps([vars(decision) for decision in mine]))


def test_a_loaded_router_can_be_changed_and_explained(router, tmp_path):
    router.save(tmp_path / "router.skops")
    loaded = AdapterRouter.load(tmp_path / "router.skops")
    assert (loaded.version, loaded.health()) == (router.version, router.health())
    loaded.add("poems", ["write a poem about the sea", "a poem of four lines"])
    assert loaded.route("a poem about the sea").best == "poems"
    assert loaded.settle(60)


# Log and corrections


def test_the_log_has_texts_only_when_asked(tmp_path, router):
    quiet, full = DecisionLog(tmp_path / "quiet.jsonl"), DecisionLog(tmp_path / "full.jsonl", texts=True)
    decision = router.route("my secret printer")
    for log in (quiet, full):
        log.write(decision, "my secret printer")
    assert "secret" not in quiet.path.read_text()
    entry = json.loads(full.path.read_text())
    assert (entry["text"], entry["script"]) == ("my secret printer", "latin")
    assert (quiet.path.stat().st_mode & 0o077) == 0


def test_corrections_are_read(tmp_path):
    lines = [{"text": "a", "correct": "json"}, {"text": "b"}, {"text": "c", "correct": None}]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert [one[:2] for one in read_corrections(path)] == [("a", "json"), ("c", None)]


def test_a_log_of_an_older_version_can_be_read(tmp_path):
    old = {"text": "a", "correct": None, "best": "json", "language": "latin"}  # `script` today
    (tmp_path / "log.jsonl").write_text(json.dumps(old))
    assert [one[:3] for one in read_corrections(tmp_path / "log.jsonl")] == [("a", None, "json")]


def test_corrections_that_are_not_utf8_are_reported(tmp_path):
    (tmp_path / "log.jsonl").write_bytes('{"text": "привет", "correct": null}'.encode("cp1251"))
    with pytest.raises(DatasetError, match="Line 1"):
        list(read_corrections(tmp_path / "log.jsonl"))


@pytest.mark.parametrize("line", ["{", '{"correct": "json"}', '{"text": "a", "correct": 3}', "[" * 100_000])
def test_an_invalid_correction_is_reported(tmp_path, line):
    (tmp_path / "log.jsonl").write_text('{"text": "a", "correct": "json"}\n' + line)
    with pytest.raises(DatasetError, match="Line 2"):
        list(read_corrections(tmp_path / "log.jsonl"))
