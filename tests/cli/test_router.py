"""`adapterhub route` and `adapterhub router`, and what other commands report of the routes."""

import json
import shutil
from pathlib import Path

import pytest

from adapterhub import AdapterRegistry, AdapterRouter
from adapterhub.cli.router import router
from adapterhub.errors import InvalidRequestError
from adapterhub.routing.classifier.calibration import Policy
from adapterhub.routing.feedback.corrections import corrections_by_card
from adapterhub.routing.registry_sync import saved_router

COMMANDS = sorted(router.commands)
REQUEST = "my router shows an error"


def lines(path: Path, *entries: object) -> Path:
    path.write_text("".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries))
    return path


@pytest.fixture
def registry(copy, tmp_path: Path) -> AdapterRegistry:
    """The registry that `copy` works on."""
    return AdapterRegistry(tmp_path / "registry")


@pytest.fixture(scope="module")
def fitted(tiny_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the registry with a saved router."""
    root = tmp_path_factory.mktemp("fitted") / "registry"
    shutil.copytree(tiny_registry, root)
    registry = AdapterRegistry(root)
    AdapterRouter.from_registry(registry).save(saved_router(registry))
    return root


@pytest.fixture
def ready(monkeypatch, run, fitted: Path):
    """`run` on that copy, which is not to be changed."""
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", str(fitted))
    return run


def routing(registry: AdapterRegistry, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = registry.get(name).routing
    return found.examples, found.negatives


def test_the_commands_are_these():
    assert COMMANDS == ["eval", "fit", "learn", "report"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(run, command):
    assert f"adapterhub router {command}" in run("router", command, "--help").out


def test_a_mistyped_command_gets_a_suggestion(run):
    assert "Did you mean 'report'?" in run("router", "reprot").err


class TestRoute:
    def test_explain_shows_the_deciding_segment(self, ready):
        shown = ready("route", f"Hello there. {REQUEST}!", "--explain")
        fields = dict(line.split(maxsplit=1) for line in shown.out.splitlines()[:4])
        assert fields["adapter"] == "support"
        assert "decided by  my router shows an error!" in shown.out
        assert "nearest     the router shows an error" in shown.out
        assert "% of the n-grams" in shown.out
        head, *rows = shown.out.split("\n\n")[1].splitlines()
        assert head.split()[:2] == ["n-gram", "support"]
        assert any(row.startswith("'") and "+0." in row for row in rows)

    def test_explain_as_json(self, ready):
        found = ready("route", REQUEST, "--explain", "--json").json
        assert found["adapter"] == "support"
        why = found["explanation"]
        assert why["segment"] == REQUEST
        assert 0 < why["unknown"] < 1
        adds = {one["ngram"]: one["best"] - one["second"] for one in why["evidence"]}
        assert adds["error"] > 0
        assert "explanation" not in ready("route", REQUEST, "--json").json

    def test_explain_of_a_rule_names_the_rule(self, copy, registry):
        registry.update("json", routing={"phrases": ["as a dict"]})
        shown = copy("route", "give it as a dict", "--explain")
        assert "rule        as a dict" in shown.out
        assert "n-gram" not in shown.out

    def test_the_log_has_the_text_only_if_asked(self, ready, tmp_path):
        log = tmp_path / "decisions.jsonl"
        ready("route", REQUEST, "--log", log, "--explain")
        ready("route", REQUEST, "--log", log, "--log-texts")
        first, second = map(json.loads, log.read_text().splitlines())
        assert (first["adapter"], "text" in first) == ("support", False)
        assert second["text"] == REQUEST

    def test_log_texts_alone_is_wrong_usage(self, run):
        assert run("route", REQUEST, "--log-texts").code == 2

    def test_the_saved_router_is_used(self, ready, monkeypatch):
        monkeypatch.setattr(AdapterRouter, "from_cards", lambda *_, **__: pytest.fail("fitted again"))
        shown = ready("route", REQUEST)
        assert ("support" in shown.out, shown.err) == (True, "")

    def test_a_stale_router_is_updated_with_its_policy(self, copy, registry):
        copy("router", "fit", "--retention", 0.5)
        registry.update(
            "code", routing={"examples": [*registry.get("code").routing.examples, "quux the foo"]}
        )
        shown = copy("route", "quux the foo", "--json")
        assert "is older than some cards (code)" in shown.err
        assert next(iter(shown.json["scores"])) == "code"
        found = shown.json
        own = AdapterRouter.from_registry(registry, policy=Policy(retention=0.5)).route("quux the foo")
        assert (found["router_version"], found["threshold"]) == (own.router_version, own.threshold)

    def test_a_damaged_one_is_reported(self, copy, registry):
        (registry.root / ".router.skops").write_bytes(b"not a router")
        shown = copy("route", REQUEST, "--json")
        assert (shown.code, shown.json["adapter"]) == (0, "support")
        assert "not used" in shown.err


class TestFit:
    def test_it_reports_what_was_learned(self, copy, registry):
        shown = copy("router", "fit")
        assert shown.code == 0
        assert ["json", "3", "0"] in [line.split() for line in shown.out.splitlines()]
        assert "any other" in shown.out
        assert "json has 3 example requests" in shown.err
        saved = registry.root / ".router.skops"
        assert AdapterRouter.load(saved).adapters == ("code", "json", "support")

    def test_the_saved_router_is_no_part_of_the_registry(self, ready):
        assert len(ready("list", "--json").json) == 3
        assert ready("verify", "--json").json == []

    def test_another_path_and_a_policy(self, copy, registry, tmp_path):
        loose = copy("router", "fit", "--retention", 1, "--out", tmp_path / "a", "--json").json
        strict = copy("router", "fit", "--precision", 1, "--out", tmp_path / "b", "--json").json
        assert loose["path"] == str(tmp_path / "a")
        assert AdapterRouter.load(tmp_path / "b").model.policy.precision == 1
        assert loose["version"] != strict["version"]
        assert loose["routes"][0] == {"adapter": "code", "examples": 3, "negatives": 0}
        assert [one["kind"] for one in strict["findings"]] == ["few_examples"] * 3
        assert not (registry.root / ".router.skops").exists()

    def test_thresholds_are_listed_by_script(self, copy, registry):
        registry.update("json", routing={"examples": [f"field number {word} as json" for word in WORDS]})
        *own, other = copy("router", "fit", "--json").json["thresholds"]
        assert [one["script"] for one in own] == ["latin"]
        assert other["script"] == "any other"
        assert own[0]["measured_on"] == other["measured_on"] == len(WORDS) + 6
        assert 0 < own[0]["threshold"] < 1

    def test_nothing_to_train_on(self, own, tmp_path):
        refused = own("router", "fit")
        assert (refused.code, "nothing to route by" in refused.err) == (1, True)
        assert not (tmp_path / "registry").exists()

    def test_two_targets_are_wrong_usage(self, copy):
        assert copy("router", "fit", "--retention", 0.9, "--precision", 0.9).code == 2


WORDS = [f"{first}{second}" for first in ("alpha", "beta", "gamma", "delta") for second in "bcdfghjklmnp"]


class TestEval:
    DATA = (
        {"text": REQUEST, "adapter": "support"},
        {"text": "the printer is broken again", "adapter": "support"},
        {"text": "write a python function", "adapter": "json"},
        {"text": "Good morning, how are you?", "adapter": None},
    )

    def test_it_measures(self, ready, tmp_path):
        data = lines(tmp_path / "data.jsonl", *self.DATA)
        found = ready("router", "eval", data, "--json").json
        assert (found["count"], found["out_of_scope"], found["out_of_scope_recall"]) == (3, 1, 1)
        assert found["accuracy"] == pytest.approx(2 / 3)
        assert found["confusion"] == {"support": {"support": 2}, "json": {"code": 1}}
        assert {"confidence", "accuracy", "count"} == found["reliability"][0].keys()
        shown = ready("router", "eval", data).out
        assert "best route is right" in shown
        assert "66.7%" in shown

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ('{"text": "x", "adapter": "jsn"}', "'jsn', which is no route"),
            ('{"text": 1, "adapter": "json"}', "text"),
            ('{"text": "x"}', "names ''"),
            ('{"text": "x", "adapter": 1}', "adapter"),
            ("[1]", "object"),
            ("{", "JSON"),
            ("[" * 100_000, "JSON"),
            ('{"text": "\udcff", "adapter": "json"}', "UTF-8"),
        ],
    )
    def test_a_line_that_cannot_be_read_is_named(self, ready, tmp_path, line, words):
        data = tmp_path / "data.jsonl"
        data.write_text(f'{{"text": "x", "adapter": "json"}}\n\n{line}\n', errors="surrogateescape")
        shown = ready("router", "eval", data)
        assert (shown.code, shown.out) == (1, "")
        assert "Line 3 of" in shown.err
        assert words in shown.err
        assert "fault" not in shown.err

    def test_no_requests_and_no_file(self, ready, tmp_path):
        (tmp_path / "empty").touch()
        assert ready("router", "eval", tmp_path / "empty").code == 1
        assert ready("router", "eval", tmp_path / "none").code == 2


class TestReport:
    def test_it_loads_nothing_from_elsewhere(self, ready, tmp_path):
        out = tmp_path / "router.html"
        assert ready("router", "report", out).code == 0
        page = out.read_text()
        assert "held out" in page
        assert "json has 3 example requests" in page
        assert "<script" not in page
        assert "http:" not in page.replace("http-equiv", "")

    def test_it_can_be_drawn_from_data(self, ready, tmp_path):
        data = lines(tmp_path / "data.jsonl", *TestEval.DATA)
        ready("router", "report", tmp_path / "router.html", "--data", data)
        page = (tmp_path / "router.html").read_text()
        assert "data.jsonl" in page
        assert "json to code: 1 of 1 (100%)" in page

    def test_a_mistake_writes_nothing(self, ready, tmp_path):
        data = lines(tmp_path / "data.jsonl", {"text": "x", "adapter": "jsn"})
        assert ready("router", "report", tmp_path / "router.html", "--data", data).code == 1
        assert not (tmp_path / "router.html").exists()


class TestLearn:
    def test_corrections_go_into_the_cards(self, copy, registry, tmp_path):
        examples, _ = routing(registry, "code")
        file = lines(
            tmp_path / "corrections.jsonl",
            {"text": "sort these numbers", "correct": "code"},
            {"text": "  SORT these   numbers", "correct": "code"},
            {"text": "my python bit me", "correct": None, "best": "code"},
            {"text": examples[0], "correct": "code"},
            {"text": "this was not reviewed", "adapter": "json"},
        )
        shown = copy("router", "learn", file)
        assert shown.code == 0
        assert shown.out.splitlines()[1].split() == ["code@1", "1", "1"]
        assert "had already: 2." in shown.err
        wanted = (*examples, "sort these numbers"), ("my python bit me",)
        assert routing(registry, "code") == wanted
        again = copy("router", "learn", file, "--json").json
        assert again == {"learned": [], "known_already": 4}
        assert routing(registry, "code") == wanted
        assert next(iter(copy("route", "sort the numbers", "--json").json["scores"])) == "code"

    def test_concurrent_changes_of_a_card_are_kept(self, registry, tmp_path):
        examples, _ = routing(registry, "code")
        mine = lines(tmp_path / "a", {"text": "sort these numbers", "correct": "code"})
        ((lesson,), _) = corrections_by_card(mine, registry)
        registry.update("code", routing={"examples": [*examples, "swap two numbers"], "negatives": ["no"]})
        registry.revise("code", lesson.applied_to)
        assert routing(registry, "code") == ((*examples, "swap two numbers", "sort these numbers"), ("no",))

    def test_a_correction_replaces_the_cards_entry(self, copy, registry, tmp_path):
        registry.update("json", routing={"negatives": ["fields please", "other"]})
        examples, _ = routing(registry, "json")
        lines(
            tmp_path / "a",
            {"text": "Fields please", "correct": "json"},
            {"text": examples[0], "correct": None, "best": "json"},
        )
        assert copy("router", "learn", tmp_path / "a").code == 0
        assert routing(registry, "json") == ((*examples[1:], "Fields please"), ("other", examples[0]))

    def test_a_log_that_was_corrected_can_be_read_back(self, copy, registry, tmp_path):
        log = tmp_path / "log.jsonl"
        copy("route", "swap the toner of my printer", "--log", log, "--log-texts")
        entry = json.loads(log.read_text())
        lines(log, entry | {"correct": None})
        assert copy("router", "learn", log, "--json").json["learned"] == [
            {"adapter": "support@1", "new_examples": 0, "new_negatives": 1}
        ]
        assert routing(registry, "support")[1] == ("swap the toner of my printer",)

    def test_it_warns_of_an_example_that_two_adapters_have(self, copy, registry, tmp_path):
        text = routing(registry, "code")[0][0]
        file = lines(tmp_path / "a", {"text": text, "correct": "json"})
        assert "code and json share an example" in copy("router", "learn", file).err

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            ({"text": "x", "correct": "jsn"}, "Did you mean 'json'?"),
            ({"text": "x", "correct": "json@1"}, "name"),
            ({"text": "x", "correct": "base"}, "reserved"),
            ({"text": "x", "correct": None}, '"best"'),
            ({"text": "x", "correct": None, "best": "gone"}, "gone"),
            ({"text": " ", "correct": "json"}, "text"),
            ({"correct": "json"}, "text"),
            ({"text": "x", "correct": 1}, "name"),
            ({"text": "good", "correct": "code"}, "line 1 of"),
            ({"text": "good", "correct": None, "best": "json"}, "line 1 of"),
        ],
    )
    def test_all_lines_are_checked_before_anything_is_changed(self, copy, registry, tmp_path, entry, words):
        before = registry.list()
        file = lines(tmp_path / "corrections", {"text": "good", "correct": "json"}, entry)
        shown = copy("router", "learn", file)
        assert (shown.code, shown.out) == (1, "")
        assert "Line 2 of" in shown.err
        assert words in shown.err
        assert registry.list() == before

    def test_a_lone_surrogate_is_refused(self, copy, registry, tmp_path):
        (tmp_path / "a").write_text('{"text": "\\ud800", "correct": "json"}')
        before = registry.list()
        shown = copy("router", "learn", tmp_path / "a")
        assert (shown.code, "Line 1 of" in shown.err, "Unicode" in shown.err) == (1, True, True)
        assert registry.list() == before

    def test_a_card_that_would_be_too_large_is_not_written(self, copy, registry, tmp_path):
        before = registry.list()
        file = lines(tmp_path / "a", *({"text": f"{n} {'x' * 4000}", "correct": "json"} for n in range(300)))
        shown = copy("router", "learn", file)
        assert (shown.code, "larger" in shown.err) == (1, True)
        assert registry.list() == before


class TestOtherCommands:
    def test_add_warns_of_the_routes(self, own, tiny_base, tiny_adapters):
        options = ("--base", tiny_base, "--example", "as json")
        own("add", "json", tiny_adapters["json"], *options)
        added = own("add", "code", tiny_adapters["code"], *options)
        assert (added.code, added.out) == (0, "code@1\n")
        assert "code has 1 example request;" in added.err
        assert 'code and json share an example. For example: "as json"' in added.err
        assert "json has 1" not in added.err

    def test_a_card_does_not_control_the_terminal(self, own, tiny_adapters, monkeypatch):
        monkeypatch.setattr("click.utils.should_strip_ansi", lambda *_: False)
        own("add", "json", tiny_adapters["json"], "--example", "\x1b[2J\nx")
        added = own("add", "code", tiny_adapters["code"], "--example", "\x1b[2J\nx")
        assert 'share an example. For example: " [2J x"' in added.err
        assert "\x1b[2J" not in added.err

    def test_add_reports_nothing_about_good_routes(self, own, tiny_base, tiny_adapters):
        examples = [word for n in range(5) for word in ("--example", f"as json {n}")]
        assert own("add", "json", tiny_adapters["json"], "--base", tiny_base, *examples).err == ""

    def test_add_refuses_an_invalid_pattern_and_stores_nothing(self, own, tmp_path, tiny_adapters):
        own("add", "json", tiny_adapters["json"], "--example", "as json")
        registry = AdapterRegistry(tmp_path / "registry")
        with pytest.raises(InvalidRequestError, match="regular expression"):
            registry.register("code", tiny_adapters["code"], routing={"patterns": ["("]})
        with pytest.raises(InvalidRequestError, match="regular expression"):
            registry.update("json", routing={"patterns": ["("]})
        assert [(card.name, card.routing.patterns) for card in registry.list()] == [("json", ())]

    def test_a_stored_invalid_pattern_is_told(self, own, tmp_path, tiny_base, tiny_adapters):
        own("add", "json", tiny_adapters["json"], "--base", tiny_base, "--example", "as json")
        store_rules(tmp_path / "registry" / "json" / "1", patterns=["("])
        added = own("add", "code", tiny_adapters["code"], "--base", tiny_base, "--example", "write code")
        assert (added.code, added.out) == (0, "code@1\n")
        assert own("route", "as json").code == 0
        (found,) = [
            one
            for one in own("doctor", "--json").json["routes"]["findings"]
            if one["kind"] == "unusable_rule"
        ]
        assert found["adapters"] == ["json"]
        assert "regular expression" in found["message"]
        AdapterRegistry(tmp_path / "registry").update("json", description="other fields can still be set")

    def test_doctor_reports_the_routes(self, ready):
        routes = ready("doctor", "--json").json["routes"]
        assert routes["problem"] is None
        assert [one["adapters"] for one in routes["findings"]] == [["code"], ["json"], ["support"]]
        shown = ready("doctor").out
        assert "routes " in shown
        assert "code has 3 example requests" in shown

    def test_doctor_of_no_adapters(self, own):
        shown = own("doctor", "--json")
        assert (shown.code, shown.json["routes"]["findings"]) == (0, [])
        assert "nothing to route by" in shown.json["routes"]["problem"]


def store_rules(folder: Path, **rules: list[str]) -> None:
    """Writes rules into a stored card, past the registry's checks."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    card["routing"] = {**card.get("routing", {}), **rules}
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
