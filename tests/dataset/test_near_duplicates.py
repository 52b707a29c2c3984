"""Exact and near duplicates: what is removed, what stays, and in which groups they are."""

import json
import random
import time
import tracemalloc

import numpy as np
import pytest

from adapterhub.dataset import minhash
from adapterhub.dataset.near_duplicates import DeduplicationOptions, deduplicate, duplicate_groups, jaccard
from adapterhub.dataset.records import Record, Sample
from benchmarks import deduplication
from benchmarks.deduplication import planted
from tests.dataset.samples import sample, texts

SYSTEM = (
    "You are a careful assistant who answers questions about sums, shortly and without any explanation. " * 5
)
WORDS = [f"word{number}" for number in range(2000)]


def text(length: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def kept(samples: list[Sample], **options) -> list[str]:
    return texts(deduplicate(samples, DeduplicationOptions(**options)).kept)


def sums(count: int = 400) -> list[Sample]:
    """Distinct short chats under one system prompt."""
    pairs = [(a, b) for a in range(1, 21) for b in range(1, 21)][:count]
    return [sample(f"What is {a} + {b}?", str(a + b), system=SYSTEM) for a, b in pairs]


def test_distinct_short_chats_under_one_system_prompt_all_stay():
    result = deduplicate(sums(), DeduplicationOptions())
    assert (len(result.kept), dict(result.dropped)) == (400, {})


def test_signs_tell_sums_apart():
    samples = [sample(f"Is 7 {sign} 2?", "yes") for sign in "<>=≠≥≤"]
    samples += [sample(f"Compute 17 {sign} 5", "ok") for sign in "+*/%^"] + [sample("Compute 17 -5", "ok")]
    samples += [sample("Sum up in one sign", sign) for sign in ("😀", "😡", "👍")]
    assert len(kept(samples)) == len(samples)


def test_exact_duplicates_differ_in_spaces_and_system_prompt_only():
    samples = [
        sample("What is it?", "A thing.", system="one"),
        sample("What  is it?\n", "A thing.", system="two"),
        sample("What is it", "A thing."),
        sample("What is it?", "A thing", source="b"),
    ]
    result = deduplicate(samples, DeduplicationOptions(near=False))
    assert result.kept == [samples[0], samples[2], samples[3]]
    assert result.dropped == {"exact duplicate": 1}


def test_near_duplicates_are_removed_and_the_first_stays():
    long = text(60, 1)
    edited = long.replace(long.split()[30], "edited")
    samples = [
        sample("Tell me about it.", long),
        sample("Tell me about it!", f"«{long.upper()}»..."),
        sample("Please tell me about it.", edited),
        sample("Tell me about it.", text(60, 2)),
    ]
    result = deduplicate(samples, DeduplicationOptions())
    assert result.kept == [samples[0], samples[3]]
    assert result.dropped == {"near duplicate": 2}


def test_questions_on_one_long_passage_are_no_duplicates():
    passage = text(200, 3)
    samples = [sample(f"{passage}\n{text(5, seed)}", text(3, seed + 100)) for seed in range(10)]
    assert len(kept(samples)) == 10


def test_tool_calls_count_as_what_is_said():
    def call(city: str) -> Sample:
        function = {"name": "weather", "arguments": {"city": city, "when": "today"}}
        messages = [
            {"role": "user", "content": "What is the weather there?"},
            {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]},
        ]
        return Sample(Record.model_validate({"messages": messages, "line": 1}), "a")

    result = deduplicate([call("Oslo"), call("Rome"), call("Oslo")], DeduplicationOptions())
    assert len(result.kept) == 2
    assert result.dropped == {"exact duplicate": 1}


@pytest.mark.parametrize(
    ("language", "passage"),
    [
        ("Chinese", "今天天气很好我们去公园散步看见很多花和树还有小鸟在唱歌大家都很高兴"),
        ("Hindi", "आज मौसम बहुत अच्छा है और हम पार्क में टहलने गए जहाँ बहुत सारे फूल और पेड़ थे सब खुश थे"),
    ],
)
def test_scripts_without_spaces_or_with_marks(language, passage):
    near = passage[:-1] + "。"
    assert len(kept([sample("?", passage), sample("?", near), sample("?", passage[::-1])])) == 2


def test_texts_without_words_are_compared_as_they_are():
    assert kept([sample("…", "!!!"), sample("…", "???"), sample("…", "!!!")]) == ["!!!", "???"]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_what_is_removed_is_verified_and_what_stays_has_no_near_duplicate(threshold):
    """Against all pairs, compared exactly."""
    generator = random.Random(0)
    samples = []
    for number in range(150):
        words = text(40, number).split()
        for _ in range(4):
            samples.append(sample("Same question.", " ".join(words)))
            words[generator.randrange(40)] = generator.choice(WORDS)
    sets = {
        id(one): frozenset(minhash.shingles(f"Same question.\n{texts([one])[0]}").tolist()) for one in samples
    }

    def are_near(one: Sample, other: Sample) -> bool:
        return jaccard(sets[id(one)], sets[id(other)]) >= threshold

    left = deduplicate(samples, DeduplicationOptions(threshold=threshold)).kept
    gone = [one for one in samples if all(one is not other for other in left)]
    assert all(any(are_near(one, other) for other in left) for one in gone)
    pairs = [(one, other) for i, one in enumerate(left) for other in left[:i]]
    assert sum(are_near(*pair) for pair in pairs) <= len(gone) * 0.02


def test_the_signatures_estimate_the_similarity():
    words = text(300, 5).split()
    other = [*words[:250], *text(50, 6).split()]
    one, two = minhash.signatures([" ".join(words), " ".join(other)])
    exact = jaccard(*(frozenset(minhash.shingles(" ".join(part)).tolist()) for part in (words, other)))
    assert abs(float(np.mean(one == two)) - exact) < 0.12  # three standard errors


def test_a_long_text_has_the_signature_of_its_parts_together():
    words = text(30_000, 7)
    hashes = minhash.shingles(words)
    whole = minhash.signatures([words])[0]
    halves = [
        minhash.signatures([" ".join(words.split()[start:end])])[0]
        for start, end in ((0, 15_002), (15_000, 30_000))
    ]
    assert len(hashes) == 29_998
    assert np.array_equal(whole, np.minimum(*halves))


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_the_bands_find_pairs_at_the_threshold(threshold):
    rows = minhash.band_rows(threshold)
    bands = 128 // rows
    assert 1 - (1 - threshold**rows) ** bands >= 0.98


def test_groups_join_duplicates_of_duplicates():
    words = text(100, 8).split()
    chain = []
    for step in range(6):
        chain.append(sample("?", " ".join(words)))
        words[step * 15 : step * 15 + 2] = ["changed", f"here{step}"]
    apart = [sample("?", text(100, 9)), sample("?", text(100, 10))]
    groups = duplicate_groups([one.record for one in [*chain, *apart, chain[0]]])
    assert len(set(groups[:6])) == 1
    assert groups[8] == groups[0]
    assert len({groups[0], groups[6], groups[7]}) == 3


def test_no_samples():
    assert deduplicate([], DeduplicationOptions()).kept == []
    assert duplicate_groups([]) == []


def test_most_planted_duplicates_are_found_and_nothing_else():
    truth = planted(2000, seed=1)
    found = deduplicate(truth.samples, DeduplicationOptions())
    assert found.dropped["exact duplicate"] == truth.exact
    assert truth.near * 0.98 <= found.dropped["near duplicate"] <= truth.near


def test_memory_does_not_grow_with_the_length_of_the_texts():
    samples = [sample("?", text(2000, seed)) for seed in range(200)]
    tracemalloc.start()
    assert len(deduplicate(samples, DeduplicationOptions()).kept) == 200
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (
        peak < 15 * 2**20
    )  # of which the signature of one text takes 6; 500 sets of shingles would take 100


@pytest.mark.filterwarnings("ignore")  # of torch, which the measure of memory imports
def test_the_benchmark_reports_its_figures(capsys):
    deduplication.main(["--rows", "500", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["kept"] == 500 - found["exact_found"] - found["near_found"]
    assert found["exact_found"] == found["exact_planted"] > 20


@pytest.mark.slow
@pytest.mark.timeout(1800)  # of the wall: on a machine that others use too
def test_a_hundred_thousand_rows_take_less_than_a_minute_of_one_core():
    truth = planted(100_000, seed=2)
    started = time.process_time()
    found = deduplicate(truth.samples, DeduplicationOptions())
    assert time.process_time() - started < 60
    assert found.dropped["exact duplicate"] == truth.exact
    assert truth.near * 0.98 <= found.dropped["near duplicate"] <= truth.near
