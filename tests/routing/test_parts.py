"""The router's parts: segments, features, calibration, encoders, files, health, evaluation, explanations."""

import json
import threading
import zipfile

import numpy as np
import pytest

from adapterhub import AdapterRegistry, AdapterRouter
from adapterhub.errors import RoutingError
from adapterhub.routing import registry_sync
from adapterhub.routing.analysis.evaluation import evaluate
from adapterhub.routing.analysis.health import findings_before_fit
from adapterhub.routing.classifier import storage
from adapterhub.routing.classifier.calibration import PRIOR, Calibration, HeldOut, Policy
from adapterhub.routing.classifier.embeddings import TokenEmbeddings, principal_components
from adapterhub.routing.classifier.features import (
    BUCKETS,
    TfidfWeighting,
    hash_ngrams,
    ngrams_by_bucket,
    normalize_text,
)
from adapterhub.routing.classifier.linear_head import LinearHead, quantize
from adapterhub.routing.classifier.text import (
    MAX_REQUEST_CHARS,
    MAX_SEGMENTS,
    WINDOW_WORDS,
    dominant_script,
    last_user_text,
    segment_request,
)
from adapterhub.routing.registry_sync import SyncedRouter, saved_router
from adapterhub.routing.routes import OUT_OF_SCOPE, Route
from tests.routing.test_router import EXAMPLES
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def router() -> AdapterRouter:
    return AdapterRouter.fit(EXAMPLES)


# Segments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain words", "latin"),
        ("naïve café", "latin"),
        ("привет, world", "cyrillic"),
        ("γειά σου", "greek"),
        ("你好世界", "han"),
        ("こんにちは", "kana"),
        ("한국어", "hangul"),
        ("שלום", "hebrew"),
        ("مرحبا", "arabic"),
        ("नमस्ते", "devanagari"),
        ("コーヒー", "kana"),
        ("สวัสดี", "thai"),
        ("შენ", "georgian"),
        ("ողջույն", "armenian"),
        ("আমি", "other"),
        ("ﬁne １２", "latin"),
        ("12 + 30 = ?", "none"),
        ("", "none"),
    ],
)
def test_scripts(text, expected):
    assert dominant_script(text) == expected


def test_a_request_is_split_into_segments():
    assert segment_request("One. Two? Three!").segments == ("One. Two? Three!", "One.", "Two?", "Three!")
    assert segment_request("one sentence").segments == ("one sentence",)
    assert segment_request("a\n```\ncode\n```\nb").segments == ("a\n \nb", "a", "b")
    assert segment_request("```\nonly code\n```").segments[0].endswith("```")
    long = segment_request("start. " + "x. " * 10_000 + "end.")
    assert len(long.segments[0]) <= MAX_REQUEST_CHARS + 1
    assert len(long.segments) <= MAX_SEGMENTS + 1
    assert {"start.", "end."} <= set(long.segments)


def test_long_sentences_are_split_into_windows_too():
    words = [str(number) for number in range(30)]
    assert segment_request(" ".join(words[:20])).segments == (" ".join(words[:20]),)
    windows = segment_request(" ".join(words)).segments[1:]
    assert [(window.split()[0], window.split()[-1]) for window in windows] == [
        ("0", "9"),
        ("5", "14"),
        ("10", "19"),
        ("15", "24"),
        ("20", "29"),
    ]
    assert segment_request(" ".join(words[:23])).segments[-1].endswith(" 22"), "no word is left out"
    mixed = segment_request(f"Short one. {' '.join(words)}!").segments
    assert mixed[1:3] == ("Short one.", f"{' '.join(words)}!")
    assert len(segment_request("some words " * 300).segments) <= MAX_SEGMENTS + 1
    assert len(segment_request(f"{'more words ' * 15}. " * 20).segments) <= MAX_SEGMENTS + 1


def test_a_request_is_found_among_words_without_full_stops(router):
    filler = "my sister and her neighbour came by earlier and the cat is asleep on the old sofa again"
    text = f"{filler} please extract all the names as json {filler}"
    assert router.route(text).best == "json"
    assert router.explain(text).segment in text
    assert len(router.explain(text).segment.split()) == WINDOW_WORDS


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ([], ""),
        ([{"role": "system", "content": "be kind"}], "be kind"),
        ([{"role": "user", "content": None}], ""),
        ([{"role": "user", "content": ["a", {"text": "b"}, {"type": "image"}, 3]}], "a\nb"),
    ],
)
def test_last_user_text(prompt, asked):
    assert last_user_text(prompt) == asked


# Features


def test_texts_that_differ_in_case_and_width_have_the_same_features():
    assert normalize_text("Ёлка № ①２") == normalize_text("елка No 12")
    assert hash_ngrams("PRINT Page 7").tolist() == hash_ngrams("print page 9").tolist()
    assert sorted(hash_ngrams("f(x) done")) != sorted(hash_ngrams("f x done"))


def test_unknown_ngrams_count_in_the_norm():
    weighting = TfidfWeighting.fit([hash_ngrams("known words")])
    known, mixed = (
        weighting.vector(hash_ngrams(text)) for text in ("known words", "known words beside strangers")
    )
    assert float(known.values @ known.values) == pytest.approx(1 + 0.7**2, rel=1e-5)
    assert float(mixed.values @ mixed.values) == pytest.approx(1 + 0.7**2, rel=1e-5)
    shared = dict(zip(mixed.indices.tolist(), mixed.values.tolist(), strict=True))
    assert all(shared[bucket] < value for bucket, value in zip(*map(np.ndarray.tolist, known), strict=True))


@pytest.mark.parametrize("text", ["", "a", "to be or not to be", "aaa aaa aaa"])
def test_term_frequency_is_sublinear(text: str):
    found = hash_ngrams(text)
    vector = TfidfWeighting(np.ones(2 * BUCKETS, np.float32)).vector(found)
    indices, counts = np.unique(found, return_counts=True)
    assert vector.indices.tolist() == indices.tolist()
    for block in (indices < BUCKETS, indices >= BUCKETS):
        shares = vector.values[block] / (1 + np.log(counts[block]))
        assert shares == pytest.approx(shares[:1].repeat(len(shares)), rel=1e-6)


def test_term_frequency_is_capped():
    weighting = TfidfWeighting(np.ones(2 * BUCKETS, np.float32))
    often, oftener = (weighting.vector(hash_ngrams("ab " * times)) for times in (300, 900))
    assert np.array_equal(often.values, oftener.values)


@pytest.mark.parametrize(
    "text",
    ["call get_weather(city) at 12:30, please", "天気を教えて 3 times", f"{'ab_' * 30}x and \ud800", ""],
)
def test_every_bucket_has_a_name(text: str):
    assert set(hash_ngrams(text)) == set(ngrams_by_bucket(text))
    assert sorted(hash_ngrams(text)) == hash_ngrams(text).tolist()
    assert all(bucket < BUCKETS or len(gram) <= 4 for bucket, gram in ngrams_by_bucket(text).items())


def test_a_missing_column_adds_nothing():
    few, more = LinearHead.zeros(2, 1), LinearHead.zeros(3, 2)
    few.steps[:-1], few.scales[:], few.biases[:] = 100, 0.5, 1
    more.steps[:-1], more.scales[:], more.biases[:] = 50, 1, 2
    values = np.ones(2, np.float32)
    assert few.decision_function(np.array([1, -1]), values).tolist() == [51]
    both = few.concatenate(more)
    assert both.decision_function(np.array([1, -1]), values).tolist() == [51, 52, 52]
    assert both.decision_function(np.array([2, -1]), values).tolist() == [1, 52, 52]
    assert both.coefficients(np.array([0, 2, -1]), 0).tolist() == [50, 0, 0]


def test_quantized_weights():
    weights = np.random.default_rng(0).normal(size=1000)
    steps, scale = quantize(weights)
    assert np.abs(steps).max() == 127
    assert np.abs(steps * scale - weights).max() <= np.abs(weights).max() / 250
    steps, scale = quantize(np.zeros(3))
    assert (steps.tolist(), scale) == ([0, 0, 0], 0)


# Confidence and threshold


def _held_out(scores, right, route="a", script="latin"):
    return [HeldOut("t", route, route if ok else "b", s, script) for s, ok in zip(scores, right, strict=True)]


def test_confidence_is_the_share_that_was_right():
    rng = np.random.default_rng(0)
    scores = rng.uniform(-2, 2, 4000)
    right = rng.random(4000) < 1 / (1 + np.exp(-(2 * scores + 0.5)))
    curve = Calibration.fit(_held_out(scores, right), Policy()).curve("latin")
    for score in (-1.5, -0.5, 0.0, 1.0):
        assert curve.confidence(score) == pytest.approx(1 / (1 + np.exp(-(2 * score + 0.5))), abs=0.04)


def test_the_threshold_meets_the_retention():
    scores = np.linspace(0, 1, 200)
    curve = Calibration.fit(_held_out(scores, scores > 0.3), Policy(retention=0.9)).general
    assert np.mean([curve.confidence(s) >= curve.threshold for s in scores]) == pytest.approx(0.9, abs=0.01)


def test_the_threshold_meets_the_precision():
    scores = np.linspace(0, 1, 200)
    curve = Calibration.fit(_held_out(scores, scores > 0.5), Policy(precision=0.8)).general
    accepted = [s for s in scores if curve.confidence(s) >= curve.threshold]
    assert np.mean([s > 0.5 for s in accepted]) == pytest.approx(0.8, abs=0.01)


def test_the_threshold_is_no_higher_than_refusal_needs():
    inside, outside = np.linspace(1, 2, 100), np.linspace(-2, -1, 100)
    held_out = _held_out(inside, inside > 0) + _held_out(outside, outside > 0, route=OUT_OF_SCOPE)
    curve = Calibration.fit(held_out, Policy()).general
    assert all(curve.confidence(s) >= curve.threshold for s in inside)
    assert np.mean([curve.confidence(s) < curve.threshold for s in outside]) >= 0.95


@pytest.mark.parametrize("others", [50, 2000])
def test_requests_for_no_adapter_count_as_one_in_five_at_most(others: int):
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 400), rng.normal(0, 1, others)
    held_out = _held_out(inside, inside > -9) + _held_out(outside, outside > 9, route=OUT_OF_SCOPE)
    curve = Calibration.fit(held_out, Policy()).general
    ours, theirs = (np.mean([curve.confidence(score) for score in scores]) for scores in (inside, outside))
    share = min(others / 400, 0.25)
    assert (ours + share * theirs) / (1 + share) == pytest.approx(1 / (1 + share), abs=0.005)


def test_each_script_has_its_own_threshold():
    held_out = _held_out(np.linspace(1, 2, 100), [True] * 100)
    held_out += _held_out(np.linspace(0, 1, 100), [True] * 100, script="cyrillic")
    held_out += _held_out(np.linspace(5, 6, 10), [True] * 10, script="greek")
    calibration = Calibration.fit(held_out, Policy())
    assert set(calibration.by_script) == {"latin", "cyrillic"}
    assert calibration.curve("greek") == calibration.general
    for name, low in (("latin", 1.05), ("cyrillic", 0.05)):
        curve = calibration.curve(name)
        assert curve.confidence(low - 0.02) < curve.threshold <= curve.confidence(low + 0.02)


def test_too_little_to_measure_on():
    assert Calibration.fit(_held_out([1.0] * 10, [True] * 10), Policy()).general == PRIOR


def test_scores_without_information_give_one_confidence():
    rng = np.random.default_rng(0)
    held_out = _held_out(rng.random(2000), rng.random(2000) < 0.75)
    curve = Calibration.fit(held_out, Policy()).curve("latin")
    assert curve.confidence(0.0) == pytest.approx(curve.confidence(1.0), abs=0.05)
    assert curve.confidence(0.5) == pytest.approx(0.75, abs=0.02)


# Encoders


def topics(texts):
    """An encoder that knows what the words of the examples are about."""
    words = {
        "json": 0,
        "record": 0,
        "python": 1,
        "code": 1,
        "printer": 2,
        "screen": 2,
        "gadget": 2,
        "snake": 1,
    }
    vectors = np.full((len(texts), 4), 0.01)
    for row, text in zip(vectors, texts, strict=True):
        for word, place in words.items():
            row[place] += word in text
    return vectors


def test_an_encoder_is_used_where_it_helps():
    examples = {
        "code": [
            f"{w} number {i} of snake land"
            for i, w in enumerate(["red", "green", "blue", "grey", "pink", "teal"])
        ],
        "support": [f"gadget {i} is {w}" for i, w in enumerate(["loud", "hot", "wet", "old", "slow", "dim"])],
    }
    texts = {"code": ["fire up my snake"], "support": ["oh no, my gadget"]}
    with_it = AdapterRouter.fit(examples, encoder=topics, general_negatives=False)
    assert with_it.evaluate(texts).accuracy == 1.0
    head = with_it.model.scorer.encoder
    assert head.weight("cyrillic") == 0.0


def test_an_encoder_without_a_gain_is_not_used(router):
    rng = np.random.default_rng(0)
    noise = AdapterRouter.fit(EXAMPLES, encoder=lambda texts: rng.normal(size=(len(texts), 8)))
    text = "a python function that adds"
    assert noise.model.scorer.encoder.weight("latin") == 0.0
    assert noise.route(text).scores == router.route(text).scores


@pytest.mark.parametrize(
    "encoder", [lambda texts: np.zeros(3), lambda texts: [[np.nan]] * len(texts), lambda texts: 1 / 0]
)
def test_a_broken_encoder_is_reported(encoder):
    with pytest.raises(RoutingError, match="encoder"):
        AdapterRouter.fit(EXAMPLES, encoder=encoder)


def test_a_router_with_an_encoder_is_saved_without_it(tmp_path):
    router, path = AdapterRouter.fit(EXAMPLES, encoder=topics), tmp_path / "r.skops"
    router.save(path)
    with pytest.raises(RoutingError, match="encoder"):
        AdapterRouter.load(path)
    loaded = AdapterRouter.load(path, encoder=topics)
    assert loaded.route("a snake in python") == router.route("a snake in python")
    loaded.add("poems", ["write a poem", "four lines"])
    assert len(loaded.route("python").scores) == 4
    assert loaded.settle(60)


def test_token_embeddings():
    table = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float32)
    encoder = TokenEmbeddings(table, lambda text: [int(word) for word in text.split()])
    common, rare, both, nothing = encoder(["0", "99", "0 99", ""])
    assert np.allclose(common + rare, both, atol=1e-6)
    assert np.linalg.norm(rare) / np.linalg.norm(table[99]) > 5 * np.linalg.norm(common) / np.linalg.norm(
        table[0]
    )
    assert not nothing.any()
    plain = TokenEmbeddings(table, lambda text: [1, 2], weighted=False)(["x"])[0]
    assert np.allclose(plain, table[1] + table[2], atol=1e-6)


def test_principal_components_preserve_differences():
    table = np.random.default_rng(0).normal(size=(200, 3)) @ np.random.default_rng(1).normal(size=(3, 32))
    near = principal_components(table, 3).astype(np.float32)
    gaps = [np.linalg.norm(t[1:] - t[:-1], axis=1) for t in (table, near)]
    assert np.allclose(*gaps, rtol=0.01)


# Files


@pytest.fixture
def saved(router, tmp_path):
    router.save(tmp_path / "router.skops")
    return tmp_path / "router.skops"


def test_a_file_needs_no_trust_and_is_small(saved):
    from skops import io

    assert io.get_untrusted_types(file=saved) == []
    assert saved.stat().st_size < 500_000


def test_damage_is_reported(saved):
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 0xFF
    saved.write_bytes(data)
    with pytest.raises(RoutingError):
        AdapterRouter.load(saved)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_other_files_are_reported(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(RoutingError, match="holds no router"):
        AdapterRouter.load(tmp_path / "other")
    with pytest.raises(RoutingError, match="There is no router"):
        AdapterRouter.load(tmp_path / "missing")


def test_a_file_that_would_fill_memory_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_UNPACKED_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("schema.json", "0" * 1001)
    with pytest.raises(RoutingError, match="are allowed"):
        AdapterRouter.load(tmp_path / "bomb")


def test_changed_content_is_reported(saved):
    from skops import io

    content = io.load(saved, trusted=[])
    for change in ({"biases": content["biases"] + 1}, {"meta": content["meta"].replace("json", "jsan")}):
        io.dump({**content, **change}, saved)
        with pytest.raises(RoutingError, match="damaged"):
            AdapterRouter.load(saved)


@pytest.mark.parametrize("name", ["steps", "scales", "biases"])
def test_rows_of_another_shape_or_type_are_reported(saved, name):
    from skops import io

    content = io.load(saved, trusted=[])
    arrays = {key: value for key, value in content.items() if key not in ("meta", "digest")}
    for other in (arrays[name].astype(np.float64), arrays[name][:-1]):
        changed = {**arrays, name: other}
        io.dump(
            {"meta": content["meta"], "digest": storage._digest(content["meta"], changed), **changed}, saved
        )
        with pytest.raises(RoutingError, match="holds no router"):
            AdapterRouter.load(saved)


def test_another_format_is_reported(router, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "FORMAT", 1)
    router.save(tmp_path / "r.skops")
    monkeypatch.undo()
    with pytest.raises(RoutingError, match="format 1"):
        AdapterRouter.load(tmp_path / "r.skops")


# Health


def test_few_and_shared_examples_are_found():
    routes = [Route.make("a", ["one", "Two things", "3"]), Route.make("b", ["two  things", *"pqrst"])]
    few, shared = findings_before_fit(routes)
    assert (few.kind, few.adapters) == ("few_examples", ("a",))
    assert (shared.kind, shared.adapters, shared.message) == (
        "shared_example",
        ("a", "b"),
        "a and b share an example.",
    )


def test_confused_routes_are_found(router):
    alike = [
        "make a json object",
        "put it into json",
        "as json please",
        "json of this",
        "the json keys",
        "json now",
    ]
    mixed = AdapterRouter.fit({**EXAMPLES, "json2": alike}).health()
    (found,) = [finding for finding in mixed if finding.kind == "mixed_up"]
    assert found.adapters == ("json", "json2")
    assert "are confused in" in found.message
    assert set(found.examples) <= {*alike, *EXAMPLES["json"]}
    assert not [finding for finding in router.health() if finding.kind != "mixed_up"]


# Measures and explanations


def test_measures(router):
    texts = {"json": ["the fields as json", "hello"], "code": ["a python function", "turn it into json"]}
    measured = router.evaluate(texts, ["what is for dinner?", "write a python function"])
    assert (measured.count, measured.out_of_scope) == (4, 2)
    assert measured.out_of_scope_recall == 0.5
    assert measured.confusion["code"] == {"code": 1, "json": 1}
    assert measured.confusion["json"][""] == 1
    assert measured.retention == 0.75
    assert measured.routed_accuracy == 0.5
    assert measured.selective_accuracy == pytest.approx(2 / 3)
    assert sum(one.count for one in measured.reliability) == 4
    assert (measured.curve[0].retention, measured.curve[0].out_of_scope_recall) == (1.0, 0.0)


def test_measures_of_nothing(router):
    nothing = evaluate({}, [])
    assert (nothing.accuracy, nothing.auroc, nothing.out_of_scope_recall, nothing.calibration_error) == (
        None,
    ) * 4
    assert router.evaluate({"json": ["json"]}).auroc is None


def test_an_explanation_adds_up(router):
    explanation = router.explain("I am here. Write a python function that sorts.")
    assert (explanation.decision.adapter, explanation.segment) == (
        "code",
        "Write a python function that sorts.",
    )
    assert explanation.evidence[0].best > explanation.evidence[0].second
    assert any(one.ngram == "python" for one in explanation.evidence)
    assert 0 < explanation.unknown < 1
    assert router.explain("zq").unknown > 0.5
    assert router.explain("").evidence == ()


# Synchronization with a registry


def test_a_synced_router_follows_the_registry(own_registry):
    registry = AdapterRegistry(own_registry)
    synced = SyncedRouter(registry)
    registry.remove("support", force=True)
    router = synced.current()
    assert router.adapters == ("code", "json")
    assert synced.current() is router
    AdapterRegistry(own_registry).update("json", routing={"phrases": ["as a record"]})
    assert synced.current().route("tell it as a record").adapter == "json"
    registry.remove("json", force=True)
    assert synced.current().adapters == ("code",)
    registry.remove("code", force=True)
    with pytest.raises(RoutingError, match="has text to route by"):
        synced.current()
    assert router.settle(60)


def test_no_request_waits_for_cards_that_were_not_changed_by_a_registry(own_registry, monkeypatch):
    """They are read again in a thread, for people edit them by hand."""
    registry = AdapterRegistry(own_registry)
    synced = SyncedRouter(registry)
    synced.current()
    monkeypatch.setattr(registry_sync, "MAX_CARDS_AGE", -1)
    release, read = threading.Event(), AdapterRegistry.list

    def slow(self):
        assert release.wait(60)
        return read(self)

    monkeypatch.setattr(AdapterRegistry, "list", slow)
    card = own_registry / "json" / "1" / "card.json"
    fields = json.loads(card.read_text())
    fields["routing"] = {**fields.get("routing", {}), "phrases": ["as a record"]}
    card.write_text(json.dumps(fields))
    assert synced.current().route("tell it as a record").reason != "rule"
    release.set()
    wait_for(lambda: synced.current().route("tell it as a record").reason == "rule")


def test_a_router_that_cannot_follow_the_cards_goes_on_as_it_is(own_registry, monkeypatch, caplog):
    synced = SyncedRouter(AdapterRegistry(own_registry))
    router = synced.current()

    def fail(self, cards):
        raise RoutingError("The encoder failed.")

    monkeypatch.setattr(AdapterRouter, "sync", fail)
    monkeypatch.setattr(registry_sync, "MAX_CARDS_AGE", -1)
    assert synced.current() is router
    wait_for(lambda: "The encoder failed." in caplog.text)


def test_a_saved_router_is_used_and_brought_up_to_date(own_registry, caplog):
    registry = AdapterRegistry(own_registry)
    AdapterRouter.from_registry(registry).save(saved_router(registry))
    registry.update("json", routing={"phrases": ["as a record"]})
    router = SyncedRouter(registry).current()
    assert router.route("tell it as a record").reason == "rule"
    assert router.settle(60)
    saved_router(registry).write_bytes(b"broken")
    assert SyncedRouter(registry).current().adapters == ("code", "json", "support")
    assert "saved router is not used" in caplog.text
    assert [card.name for card in registry.list()] == ["code", "json", "support"]
