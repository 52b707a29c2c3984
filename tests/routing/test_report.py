from dataclasses import replace
from html.parser import HTMLParser

import pytest

from adapterhub import AdapterRouter
from adapterhub.routing.analysis.evaluation import Evaluation, evaluate
from adapterhub.routing.analysis.health import Finding
from adapterhub.routing.analysis.report import MAX_ROUTES, evaluate_held_out, html_report, measures
from adapterhub.routing.classifier.calibration import HeldOut
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.decision import RouteDecision

EVIL = "<script>alert('x')</script>\"&"


def decision(adapter: str | None, best: str | None = None, confidence: float = 0.9) -> RouteDecision:
    scores = {best or adapter or "a": 1.0}
    return RouteDecision(adapter, confidence, 0.5, "matched", scores, fallback=adapter is None)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(
        {
            "a": [decision("a"), decision("a", confidence=0.7), decision("b", confidence=0.6)],
            "b": [decision("b"), decision(None, "b", 0.3)],
        },
        [decision(None, "a", 0.2), decision("a", confidence=0.65)],
    )


class Page(HTMLParser):
    """A page's tags, texts and attributes; fails where tags do not match."""

    VOID = ("meta", "br", "circle", "path")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID or (tag == "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]


def test_it_shows_where_requests_went(evaluation):
    page = Page(html_report(evaluation))
    titles = page.of("title")
    assert "a to a: 2 of 3 (67%)" in titles
    assert "a to b: 1 of 3 (33%)" in titles
    assert "b to base: 1 of 2 (50%)" in titles
    assert not any("b to a" in title for title in titles)
    assert page.of("td")[-9:] == ["b", "2", "50%", "50%", "a", "3", "67%", "0%", "b (1)"]


def test_it_draws_both_curves(evaluation):
    page = Page(html_report(evaluation))
    titles = " ".join(page.of("title"))
    assert "confidence 30.0%, right 100.0%" in titles
    assert "retention 80.0%, recall 50.0%" in titles
    curves = [attributes["d"] for tag, attributes in page.tags if attributes.get("class") == "curve"]
    assert len(curves) == 1
    assert curves[0].count("L") == len(evaluation.curve) - 1


def test_measures_have_names(evaluation):
    found = dict(measures(evaluation))
    assert found["requests"] == "5"
    assert found["best route is right"] == "80.0%"
    assert found["out-of-scope sent to the base"] == "50.0%"
    cells = Page(html_report(evaluation)).of("td")
    assert [cell for pair in measures(evaluation) for cell in pair] == cells[: 2 * len(found)]


def test_what_was_not_measured_is_marked():
    page = html_report(evaluate({"a": [decision("a")]}))
    assert "not measured" in page
    assert "no out-of-scope requests" in page
    assert "no requests for any adapter" in html_report(evaluate({}))


def test_every_text_is_escaped():
    found = evaluate({EVIL: [decision(EVIL), decision(None, EVIL)], "a": [decision(EVIL)]})
    finding = Finding("shared_example", (EVIL, "a"), f"{EVIL} and a", (EVIL, "half \ud800 a character"))
    text = html_report(found, [finding], note=EVIL)
    text.encode()
    page = Page(text)
    assert {"script", "alert"}.isdisjoint(tag for tag, _ in page.tags)
    assert page.texts.count(("q", EVIL)) == 1
    assert f"{EVIL} to base: 1 of 2 (50%)" in page.of("title")
    assert "<script" not in text


def test_nothing_is_fetched_and_dark_is_light(evaluation):
    text = html_report(evaluation)
    assert "prefers-color-scheme: dark" in text
    assert "default-src 'none'" in text
    for word in ("src=", "href", "url(", "@import", "://", "<script"):
        assert word not in text


def test_of_very_many_routes_the_worst_are_drawn():
    decisions = {f"r{n:03}": [decision(f"r{n:03}")] * 2 for n in range(100)}
    decisions["r050"] = [decision("r051"), decision("r099"), decision("r099")]
    text = html_report(evaluate(decisions))
    page = Page(text)
    drawn = [text for text in page.of("title") if text.startswith("r050 to")]
    # r099 is right in all its requests, and so not among the routes that are drawn.
    assert drawn == ["r050 to others: 3 of 3 (100%)"]
    rows = {title.split(" to ")[0] for title in page.of("title") if " to " in title}
    assert len(rows) == MAX_ROUTES
    assert f"The {MAX_ROUTES} of 100 routes" in text
    assert len([text for text in page.of("td") if text.startswith("r") and len(text) == 4]) == 100


NUMBERS = ("one", "two", "three", "four", "five", "six", "seven")
VERBS = ("adds", "sorts", "sums", "maps", "folds", "zips", "cuts")
THINGS = ("printer", "phone", "screen", "mouse", "lamp", "radio", "desk")
EXAMPLES = {
    "json": [f"give field {word} as json" for word in NUMBERS],
    "code": [f"write a function that {word}" for word in VERBS],
    "help": [f"my {word} is broken" for word in THINGS],
}


@pytest.fixture(scope="module")
def model() -> RouterModel:
    return AdapterRouter.fit(EXAMPLES).model


class TestHeldOut:
    def test_it_measures_what_the_fit_held_out(self, model):
        found = evaluate_held_out(model)
        assert found.count == 21
        own = [one for one in model.held_out if one.route in EXAMPLES]
        assert found.accuracy == sum(one.correct for one in own) / 21
        curves = [model.calibration.curve(one.script) for one in own]
        retained = [
            curve.confidence(one.score) >= curve.threshold for curve, one in zip(curves, own, strict=True)
        ]
        assert found.retention == sum(retained) / 21
        assert found.confusion.keys() == EXAMPLES.keys()

    def test_an_adapters_own_threshold_counts(self, model):
        routes = [
            route.model_copy(update={"threshold": 1.0}) if route.name == "json" else route
            for route in model.routes
        ]
        row = evaluate_held_out(replace(model, routes=tuple(routes))).confusion["json"]
        assert row[""] == 7

    def test_requests_for_no_adapter_are_out_of_scope(self, model):
        held_out = (
            HeldOut("Hello", "~none", "json", -9.0, "latin"),
            HeldOut("as json", "~none", "json", 9.0, "latin"),
        )
        own = tuple(one for one in model.held_out if one.route in EXAMPLES)
        found = evaluate_held_out(replace(model, held_out=own + held_out))
        assert (found.count, found.out_of_scope, found.out_of_scope_recall) == (21, 2, 0.5)
        assert "~none" not in found.confusion
