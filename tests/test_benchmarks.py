"""Each benchmark runs on the smallest shape and reports its figures."""

import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from safetensors.torch import save_file

from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.kv.shape import KVShape
from benchmarks import (
    adapter_load,
    batch_invariance,
    decode_step,
    experts,
    finetune,
    hybrid_step,
    memory,
    merge,
    packed_products,
    perplexity,
    prefill,
    profile_step,
    proof,
    sampling,
    server,
    serving,
    slot_modules,
    structured,
)
from benchmarks.common import interleaved, parser, ratio
from benchmarks.contenders import kv_room_mib
from benchmarks.routing import quality
from benchmarks.routing.__main__ import main as routing
from benchmarks.routing.data import FILLER_WORDS, Clinc, ciphered, draw, with_filler, with_typo
from benchmarks.routing.figures import SHIPPED, Bar, Figures, three
from benchmarks.routing.rivals import Answers, aggregated
from benchmarks.shapes import write_base
from benchmarks.traffic import Arrival, Clock, summary

TINY = ["--shape", "tiny", "--rank", "4"]
Run = Callable[..., dict[str, Any]]

# PEFT and transformers warn about what a benchmark cannot change.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run(capsys) -> Run:
    def run(main: Callable[[list[str]], None], *arguments: str) -> dict[str, Any]:
        main([*TINY, *arguments, "--json"])
        return json.loads(capsys.readouterr().out)

    return run


def test_hybrid_step(capsys):
    hybrid_step.main(["--width", "64", "--layers", "4", "--rows", "1", "3", "--rounds", "2", "--json"])
    found = json.loads(capsys.readouterr().out)["milliseconds"]
    assert [(name, list(times)) for name, times in found.items()] == [
        ("packed", ["1", "3"]),
        ("row by row", ["1", "3"]),
    ]
    assert all(time > 0 for times in found.values() for time in times.values())


def test_experts(run: Run):
    sizes = ["--hidden", "32", "--inner", "16", "--experts", "4", "--top-k", "2"]
    found = run(experts.main, *sizes, "--tokens", "1", "4", "--adapters", "1", "2", "--rounds", "3")
    measured = {(one["tokens"], one["adapters"]) for one in found["experts"]}
    assert measured == {(1, 1), (4, 1), (4, 2)}
    assert {one["contender"] for one in found["experts"]} == {experts.BASE, experts.OURS, experts.PEFT}
    assert all(one["milliseconds"] > 0 for one in found["experts"])
    # rank 4 for each of 4 experts, gate and up together of width 32
    assert found["slot_mib"] == 4 * 4 * ((32 + 32) + (16 + 32)) * 4 / 2**20


def test_slot_modules(run: Run):
    found = run(slot_modules.main, "--adapters", "2", "--rounds", "3", "--prompt", "8")["slot_modules"]
    beside = {one["kind"]: one["mib_beside_lora"] * 2**20 / 4 for one in found}  # float32
    assert beside == {
        slot_modules.LORA: 0,
        slot_modules.EMBEDDING: 4 * (32000 + 64),
        slot_modules.HEAD: 32000 * 64,
        slot_modules.NORMS: (2 * 2 + 1) * 64,
        # Of the embedding and of the tied output layer; the numbers of the tokens are int64.
        slot_modules.ROWS: 2 * (100 * 64 + 2 * 100),
    }
    assert all(one["milliseconds"] > 0 for one in found)


def test_batch_invariance(run: Run):
    found = run(batch_invariance.main, "--rounds", "2", "--quantization", "none", "--prefill", "20")
    assert found["sizes"] == sorted(set(found["sizes"]))
    assert [what for what, *_ in found["steps"]] == [
        "1 row",
        "1 row, 1 adapter",
        "16 rows",
        "16 rows, 16 adapters",
        "prefill of 20 tokens",
    ]
    assert all(value > 0 for _, *values in found["steps"] for value in values)


@pytest.mark.skipif(not has_avx512bf16(), reason="only CPUs with AVX512-BF16 pack 4-bit weights")
def test_packed_products(run: Run):
    found = run(packed_products.main, "--rounds", "2", "--rows", "1", "2")["packed_products"]
    sizes = ["8 layers of 64 x 64", "4 layers of 128 x 64", "2 layers of 64 x 128"]
    assert [(what, tokens) for what, tokens, *_ in found] == [
        (what, tokens) for what in (*sizes, "step") for tokens in (1, 2)
    ]
    assert all(value > 0 for _, _, *values in found for value in values)


def test_proof(run: Run):
    found = run(proof.main, "--rounds", "1", "--seeds", "2", "--quantization", "none")
    assert found["runner"] == "packed"
    assert max(found["differences"]) < found["bound"] < min(found["without_the_adapter"])


def test_decode_step(run: Run):
    found = run(
        decode_step.main,
        "--rows",
        "2",
        "--adapters",
        "1",
        "2",
        "--rounds",
        "3",
        "--prompt",
        "8",
        "--quantization",
        "none",
    )
    contenders = {(one["contender"], one["adapters"]) for one in found["steps"]}
    assert {
        (decode_step.BASE, 0),
        (decode_step.FRESH, 0),
        (decode_step.IDLE, 0),
        (decode_step.CONTINUOUS, 0),
    } < contenders
    assert {(decode_step.OURS, 1), (decode_step.OURS, 2), (decode_step.PEFT_MIXED, 2)} < contenders
    assert all(one["milliseconds"] > 0 and one["over_base"] > 0 for one in found["steps"])
    assert {one["over_base"] for one in found["steps"] if one["contender"] == decode_step.BASE} == {1.0}
    assert found["machine"]["versions"]["torch"]


def test_operations_do_not_grow_with_the_adapters(run: Run):
    found = run(decode_step.main, "--rows", "4", "--adapters", "4", "--rounds", "2", "--prompt", "8")
    ours, peft = found["operations"][decode_step.OURS], found["operations"][decode_step.PEFT_MIXED]
    # Whether rows must be put in order once more for their logits depends on how they stand: a few operations a step.
    assert abs(ours["2"] - ours["4"]) <= 4
    assert ours["4"] < peft["4"]
    assert peft["1"] < peft["2"] < peft["4"]


def test_serving(run: Run):
    found = run(
        serving.main,
        *("--adapters", "2", "--overload", "1", "4", "--slots", "2", "--rows", "2"),
        *("--requests", "6", "--rate", "50", "--clock", "cpu", "--tokens", "3", "--prompt", "4"),
    )
    served = {one["contender"]: one for one in found["served"]}
    assert set(served) == {"base", "ours", "peft-grouped", "peft-switching"}
    assert all(one["tokens_per_second"] > 0 for one in served.values())
    assert all(
        0 < one["first_token_p50"] < one["latency_p50"] <= one["latency_p99"] for one in served.values()
    )
    few, many = found["overload"]
    assert (few["evictions"], few["loads"]) == (0, 1)
    assert many["evictions"] > 0
    assert many["peak_mib"] >= many["engine_mib"] > 0


def test_adapter_load(run: Run):
    found = run(adapter_load.main, "--adapters", "1", "2", "--rounds", "3")
    assert set(found["switch"]) == {"1", "2"}
    assert found["switch"]["2"]["ours"] < found["switch"]["2"]["PEFT"]
    ours = found["load"]["ours"]
    assert set(ours) == {"in its slot", "in host memory", "on disk, cached", "on disk", "evict"}
    assert set(found["load"]["PEFT, 2 loaded"]) == {"in its slot", "on disk, cached", "on disk", "evict"}


def test_memory(run: Run):
    found = run(memory.main, "--adapters", "1", "4", "--slots", "2", "--host", "3", "--rows", "2")[
        "mebibytes"
    ]
    sizes = {(one["contender"], one["adapters"]): one for one in found}
    assert sizes["ours", 1]["slots"] == sizes["ours", 4]["slots"]  # as many slots, whatever is in them
    assert sizes["PEFT", 4]["slots"] == pytest.approx(4 * sizes["PEFT", 1]["slots"])
    assert sizes["ours", 4]["slots"] == pytest.approx(2 * sizes["PEFT", 1]["slots"])
    assert sizes["ours", 4]["host"] == pytest.approx(3 * sizes["ours", 1]["host"])


def test_prefill(run: Run):
    found = run(prefill.main, "--tokens", "1024", "--prompts", "1", "4", "--rounds", "2")["prefill"]
    ours = [one for one in found if one["contender"].startswith(prefill.OURS)]
    assert {(one["prompts"], one["tokens of each"]) for one in found} == {(1, 1024), (4, 256)}
    assert {one["contender"].rpartition(" ")[2] for one in ours} == {"512", "1024"}
    names = {(one["prompts"], one["contender"]) for one in found}
    assert {(1, prefill.PEFT_ONE), (4, prefill.PEFT_SWITCHING), (4, prefill.PEFT_MIXED)} < names
    assert {one["over base"] for one in found if one["contender"] == prefill.BASE} == {1.0}


def test_profile_step(run: Run):
    found = run(profile_step.main, "--rows", "2", "--adapters", "2", "--rounds", "2")["profile"]
    parts = {name: {part["name"]: part["ms"] for part in one["parts"]} for name, one in found.items()}
    own = {profile_step.ADAPTERS, profile_step.ATTENTION, profile_step.SAMPLING}
    assert parts[profile_step.OURS].keys() == own | {profile_step.LINEAR, profile_step.REST}
    assert parts[profile_step.BASE].keys() == {profile_step.LINEAR, profile_step.REST}
    for one in found.values():
        assert one["ms"] > 0
        assert sum(part["ms"] for part in one["parts"]) == pytest.approx(one["kernel_ms"])


def test_a_base_is_kept_and_used_again(run: Run, tmp_path: Path):
    written = set()
    for _ in range(2):
        run(memory.main, "--adapters", "1", "--rows", "1", "--base", str(tmp_path))
        written.add((tmp_path / "tiny" / "config.json").stat().st_mtime_ns)
    assert len(written) == 1


def test_rows_of_a_step_have_room_in_the_engine(tmp_path: Path):
    base = load_base(write_base(tmp_path, "tiny"), quantization=None, device="cpu")
    assert kv_room_mib(base, 4, 100) == EngineLimits.kv_cache_mib
    room = kv_room_mib(base, 20_000, 100)
    tokens = (room << 20) // KVShape.of(base.model.config, base.compute_dtype, base.device).bytes_per_token
    assert tokens - tokens // 4 >= 20_000 * 128


def test_a_table_is_printed(capsys):
    memory.main([*TINY, "--adapters", "1", "--rows", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"tiny, nf4, cpu; .+ threads", lines[0])
    assert lines[1].split()[:2] == ["adapters", "contender"]


def test_contenders_take_turns_and_the_first_round_is_dropped():
    calls: list[str] = []
    options = parser("").parse_args(["--rounds", "3"])
    times = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, options)
    assert calls == list("ababab")
    assert [len(taken) for taken in times.values()] == [2, 2]


def test_a_ratio_is_taken_round_by_round():
    assert ratio([2.0, 20.0, 200.0], [1.0, 10.0, 200.0]) == 2.0


def test_throughput_counts_from_the_first_arrival_to_the_last_token():
    requests = [Arrival(1.0, None, [], first=0.5, last=1.0), Arrival(2.0, None, [], first=1.0, last=4.0)]  # type: ignore[arg-type]
    assert summary(requests, tokens=10)["tokens_per_second"] == pytest.approx(20 / 5)
    assert summary(requests, tokens=10)["latency_p50"] == pytest.approx(2.5)


def test_a_clock_of_the_process_does_not_wait():
    clock, started = Clock("cpu"), time.perf_counter()
    clock.idle_until(30.0)
    assert clock.now() >= 30.0
    assert time.perf_counter() - started < 20.0


def test_a_clock_of_the_wall_waits():
    clock, started = Clock("wall"), time.perf_counter()
    clock.idle_until(0.05)
    assert time.perf_counter() - started >= 0.05


THINGS = {
    "play_music": ("play some {} for me", "put on {} now", "i want to hear {}"),
    "stop_music": ("stop the {} at once", "no more {} please", "turn {} off"),
    "book_table": ("book a table for {}", "reserve seats for {} tonight", "a table for {} at eight"),
    "cancel_table": ("cancel my table for {}", "we do not come for {}", "undo the booking of {}"),
}
WORDS = "rock jazz opera blues dinner lunch pizza sushi friends family".split()  # noqa: SIM905  reads better


@pytest.fixture(scope="module")
def clinc(tmp_path_factory) -> Path:
    """A folder with a data set in the format of CLINC150's: 4 intents of 20 requests in 2 domains."""
    pairs = [[one.format(word), name] for name, ways in THINGS.items() for one in ways for word in WORDS]
    outside = [[f"how {one} is the {two}", "oos"] for one in ("tall", "old") for two in WORDS]
    data = {
        "train": [pair for index, pair in enumerate(pairs) if index % 3],
        "test": pairs[::3],
        "oos_train": outside[::2],
        "oos_test": outside[1::2],
    }
    domains = {"music": ["play_music", "stop_music"], "tables": ["book_table", "cancel_table"]}
    folder = tmp_path_factory.mktemp("clinc")
    (folder / "data_full.json").write_text(json.dumps(data))
    (folder / "domains.json").write_text(json.dumps(domains))
    return folder


@pytest.fixture
def figures(clinc: Path, tmp_path: Path) -> Callable[..., dict[tuple[str, str], dict[str, list[float]]]]:
    """Runs one part and gives setting and contender -> measure -> draws."""

    def run(part: str, *arguments: str) -> dict[tuple[str, str], dict[str, list[float]]]:
        out = tmp_path / "figures.json"
        routing(["--data", str(clinc), "--part", part, "--seeds", "10", "--json", str(out), *arguments])
        found: dict[tuple[str, str], dict[str, list[float]]] = {}
        for row in json.loads(out.read_text())["figures"]:
            found.setdefault((row["setting"], row["contender"]), {})[row["measure"]] = row["draws"]
        return found

    return run


def test_routing_accuracy(figures):
    found = figures("accuracy", "--seeds", "10,11")
    contenders = {contender for setting, contender in found if setting == "4 routes, all"}
    assert contenders == {
        "router",
        "router, shipped negatives",
        "router, 100 negatives",
        "TF-IDF + logistic regression",
        "nearest utterances, mean",
        "nearest utterances, max",
    }
    assert all(own["accuracy"][0] > 60 for own in found.values())  # chance is 25 or 50
    assert len(found["4 routes, 5 each", "router"]["retention"]) == 2
    assert len(found["4 routes, all", "router"]["ECE"]) == 1
    assert {setting for setting, _ in found} >= {"2 domains, 10 each", "2 domains, all", "4 routes, 20 each"}


def test_routing_speed(figures, capsys):
    found = figures("speed", "--routes", "9", "--queries", "300")
    few, more = found["4 routes x 10", SHIPPED], found["9 routes x 10", SHIPPED]
    assert few.keys() == more.keys() >= {"p50 ms", "p99 ms", "fit s", "add s", "remove s", "file MB"}
    assert all(value > 0 for own in (few, more) for (value,) in own.values())
    assert few["p50 at rest"] <= few["p50 ms"] < few["p99 ms"]
    assert few["file MB"] < more["file MB"]
    assert "p50 ms" in capsys.readouterr().out


def test_routing_after_changes(figures, monkeypatch):
    assert all(own["one by one"][0] > 60 for own in figures("incremental").values())
    monkeypatch.setattr(
        quality, "hits", lambda router, test: 10 * len(router.adapters) + router.model.changes
    )
    found = figures("incremental")
    added, removed = found["2 routes added to 2", SHIPPED], found["2 routes removed from 4", SHIPPED]
    assert added == {"one by one": [42], "fitted anew": [40], "difference": [2]}
    assert removed == {"one by one": [22], "fitted anew": [20], "difference": [2]}


def test_routing_of_changed_requests(figures):
    found = figures("robustness")
    assert {setting for setting, _ in found} == {"25 words of filler", "25 words, no full stops", "one typo"}
    assert all(own["loss"] == [own["plain"][0] - own["changed"][0]] for own in found.values())


def test_routing_in_two_languages(figures):
    found = figures("languages")
    assert found["English", SHIPPED].keys() == {"accuracy", "retention", "retention, one threshold"}
    assert found["Russian", SHIPPED]["accuracy"][0] > 90


def test_routing_to_the_shipped_adapters(figures):
    (own,) = figures("demo").values()
    tasks = ("json", "code", "support", "tools")
    assert own["right adapter"][0] == pytest.approx(sum(own[task][0] for task in tasks) / 4)
    assert own["right adapter"][0] > 80
    assert own["OOS to base"][0] > 50


def test_a_figure_is_shown_with_its_bar(capsys):
    figures = Figures("accuracy")
    for value in (82.0, 84.0):
        figures.add("150 routes, 10 each", "router", {"accuracy": value, "ECE": 0.04})
    figures.add("9 routes", "router", {"accuracy": 1.0})
    figures.show()
    shown = [line.split("accuracy")[-1].split() for line in capsys.readouterr().out.splitlines()]
    assert ["83.0", "82.0", "to", "84.0", ">=", "82.5", "reached"] in shown
    reached = {(row["setting"], row["measure"]): row["reached"] for row in figures.rows}
    assert reached == {
        ("150 routes, 10 each", "accuracy"): True,
        ("150 routes, 10 each", "ECE"): False,
        ("9 routes", "accuracy"): None,
    }


def test_a_bar_may_be_open_on_either_side():
    assert [Bar(93, 97).reached(value) for value in (92.9, 93, 97, 97.1)] == [False, True, True, False]
    assert Bar(high=5).reached(-1)
    assert not Bar(5).reached(4)
    assert [str(bar) for bar in (Bar(93, 97), Bar(96.0), Bar(high=0.25))] == ["93 to 97", ">= 96", "<= 0.25"]


def test_accuracy_auroc_and_recall():
    inside = Answers(["a", "b", "a", "b"], np.array([0.9, 0.8, 0.7, 0.4]))
    outside = Answers(["a", "b"], np.array([0.5, 0.1]))
    found = three(["a", "b", "b", "b"], inside, outside)
    assert found["accuracy"] == 75.0
    assert found["AUROC"] == 100 * 7 / 8  # one pair of eight is the wrong way round
    assert found["OOS recall"] == 50.0  # 95 % of those inside reach 0.445


def test_only_the_nearest_utterances_of_a_route_count():
    cosines, codes = np.array([[0.9, 0.1, 0.6, 0.6, 0.5, 0.4]]), np.array([0, 0, 1, 1, 0, 2])
    assert aggregated(cosines, codes, 3, mean=False).tolist() == [[0.9, 0.6, 0.4]]
    assert aggregated(cosines, codes, 3, mean=True)[0] == pytest.approx([0.7, 0.6, 0.4])  # not the 0.1


def test_the_data_set_by_intent_and_by_domain(clinc):
    data = Clinc.read(clinc)
    assert set(data.train) == set(data.test) == set(THINGS)
    assert not {text for some in data.train.values() for text in some} & set(data.test["play_music"])
    assert data.by_domain(data.test)["music"] == data.test["play_music"] + data.test["stop_music"]
    assert data.tags["tables"] == ["book table", "cancel table"]


def test_a_draw_follows_its_seed():
    requests = {"a": list("abcdefghij"), "b": list("xy")}
    assert draw(requests, 3, 1) == draw(requests, 3, 1) != draw(requests, 3, 2)
    assert {name: len(texts) for name, texts in draw(requests, 3, 1).items()} == {"a": 3, "b": 2}


def test_ciphers_make_more_routes_of_the_same_shape():
    found = ciphered({"a": ["Hello all"], "b": ["one two"]}, 5)
    assert list(found) == ["a_0", "b_0", "a_1", "b_1", "a_2"]
    assert found["a_0"] == ["hello all"]
    for name in ("a_1", "a_2"):
        (text,) = found[name]
        assert text != "hello all"
        assert [text.index(sign) for sign in text] == ["hello all".index(sign) for sign in "hello all"]


def test_filler_surrounds_a_request():
    rng = random.Random(0)
    texts = [with_filler("play some jazz", rng) for _ in range(50)]
    assert all("play some jazz." in text for text in texts)
    assert all(FILLER_WORDS <= len(text.split()) - 3 < FILLER_WORDS + 12 for text in texts)
    assert len(set(texts)) > 40
    assert "." not in with_filler("play some jazz", rng, sentence=False)


def test_a_typo_is_in_the_longest_word():
    rng = random.Random(0)
    for text in [with_typo("put on the radio now", rng) for _ in range(50)]:
        typed = re.fullmatch(r"put on the (\S+) now", text)[1]
        assert abs(len(typed) - 5) <= 1
        assert len(set("radio") & set(typed)) >= 4


def test_sampling(capsys):
    sampling.main(["--vocabulary", "100", "2000", "--rounds", "2", "--json"])
    draws = json.loads(capsys.readouterr().out)["draws"]
    assert [(row["vocabulary"], row["settings"]) for row in draws] == [
        (size, name) for size in (100, 2000) for name in sampling.SETTINGS
    ]
    assert all(row[field] > 0 for row in draws for field in ("ours", "transformers", "ratio"))


def test_structured_with_a_generated_vocabulary():
    tokenizer = structured.generated_tokenizer(1500)
    assert len(tokenizer) == 1500
    assert tokenizer.decode(tokenizer("an order")["input_ids"]) == "an order"
    rows = structured.measure(tokenizer, 1500, answers=1)
    assert {row["output_format"] for row in rows} == set(structured.OUTPUT_FORMATS)
    assert all(
        row[cost] > 0
        for row in rows
        for cost in ("vocabulary_ms", "compile_ms", "constraint_us", "sampler_us")
    )


def test_perplexity_of_every_quantisation(tiny_base: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--windows", "2", "--tokens", "32", "--shift", "16"]
    perplexity.main(["--model", str(tiny_base), *options, "--json"])
    rows = json.loads(capsys.readouterr().out)
    errors = {name: row["error"] for name, row in rows.items()}
    assert (
        errors["none"]
        == 0
        < errors["int8_weight_only"]
        < 0.01
        < errors["int4"]
        < errors["nf4"]
        < errors["fp4"]
        < 0.15
    )
    # A random base: its perplexity is near the size of its vocabulary, whatever the weights are rounded to.
    own = rows["none"]["perplexity"]
    assert abs(rows["int8_weight_only"]["perplexity"] / own - 1) < 0.01
    assert all(0.5 < row["perplexity"] / own < 2 for row in rows.values())


@pytest.mark.slow  # starts two processes for each
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_finetune_has_the_losses_of_peft_and_trl(quantization: str, capsys: pytest.CaptureFixture[str]):
    finetune.main(
        [
            "--shape",
            "tiny",
            "--quantization",
            quantization,
            "--rounds",
            "1",
            "--steps",
            "3",
            "--batch-size",
            "2",
            "--json",
        ]
    )
    found = json.loads(capsys.readouterr().out)
    assert found["loss_difference"] < 1e-3
    assert found["speedup"] > 0
    assert "in float32" not in found["results"]
    assert all(one["memory_mib"] > 0 for rounds in found["results"].values() for one in rounds)


def test_finetune_says_how_far_both_are_from_float32(capsys: pytest.CaptureFixture[str]):
    losses = {"adapterhub": [1.5, 2.0], "peft + trl": [1.25, 2.0], "in float32": [1.0, 2.0]}
    results = {
        name: [{"seconds": 1.0, "cpu_seconds": 1.0, "memory_mib": 1.0, "losses": values}]
        for name, values in losses.items()
    }
    figures = finetune.summary(results)
    assert figures["loss_difference"] == 0.25
    assert (figures["adapterhub from float32"], figures["peft + trl from float32"]) == (0.25, 0.125)
    finetune.show(results, figures)
    assert "losses of adapterhub from float32: 2.5e-01 on average" in capsys.readouterr().out


@pytest.mark.slow  # starts three processes
def test_merge_compares_weights_and_costs(capsys):
    results = merge.measure("tiny", 1, (*merge.CONTENDERS, merge.EXACT))
    assert [len(rounds) for rounds in results.values()] == [1, 1, 1]
    assert all(one.keys() == {"memory_mib", "seconds", "cpu_seconds"} for (one,) in results.values())
    assert re.search(r"all \d+ tensors are those of PEFT, bit by bit", capsys.readouterr().err)


def test_merge_finds_a_weight_that_differs(tmp_path):
    for name, seed in (("one", 0), ("other", 1)):
        torch.manual_seed(seed)
        save_file({"same": torch.ones(3), "own": torch.rand(3)}, tmp_path / f"{name}.safetensors")
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.safetensors").rename(tmp_path / name / "model.safetensors")
    assert merge.equal_weights(tmp_path / "one", tmp_path / "one") == 2
    with pytest.raises(SystemExit, match="own differs"):
        merge.equal_weights(tmp_path / "one", tmp_path / "other")


def test_server(capsys):
    options = ["--clients", "2", "--tokens", "4", "--rounds", "2", "--singles", "1", "--json"]
    server.main(["--model", "echo", *options])
    found = json.loads(capsys.readouterr().out)
    assert [one["answers"] for one in found["throughput"]] == ["whole", "streamed"]
    for one in found["throughput"]:
        # Four tokens of 10 ms each, for two clients at once.
        assert all(0 < tokens <= 2 * 4 / 0.04 for tokens in one["tokens_per_second"].values())
    assert all(milliseconds >= 10 for milliseconds in found["first_text"].values())


def test_server_of_another_base(tiny_base, tiny_registry, capsys):
    options = ["--clients", "2", "--tokens", "4", "--rounds", "2", "--singles", "1", "--json"]
    server.main(["--model", str(tiny_base), "--registry", str(tiny_registry), *options])
    found = json.loads(capsys.readouterr().out)
    assert found["options"]["model"] == str(tiny_base)
    assert all(min(one["tokens_per_second"].values()) > 0 for one in found["throughput"])
