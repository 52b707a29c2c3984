"""The contenders side by side, and the ratios that must not get worse, on the smallest shape."""

import json
from pathlib import Path

import pytest

from benchmarks import ratios
from benchmarks.ratios import Recorded, best_of, check, worse
from benchmarks.versus.__main__ import main
from benchmarks.versus.figures import Plan, agreement
from benchmarks.versus.process import Entry
from benchmarks.versus.tables import markdown

# PEFT and transformers warn about what a benchmark cannot change.
pytestmark = pytest.mark.filterwarnings("ignore")


class TestFigures:
    PLAN = Plan(tokens=5)

    def test_a_step_is_an_answer_without_its_first_token(self):
        seconds = {"1 row": [9.0, 1.8, 2.0], "1 row first": [1.0, 1.2, 3.0]}
        assert self.PLAN.figures(seconds) == {"1 row, ms": pytest.approx(200)}  # 0.8 s for 4 tokens

    def test_requests_at_once_are_counted_whole(self):
        seconds = {"16 rows": [2.0], "16 rows first": [1.0], "prefill": [0.25]}
        figures = self.PLAN.figures(seconds)
        assert figures["16 rows, ms"] == pytest.approx(250)
        assert figures["16 rows, tokens/s"] == pytest.approx(40)  # 16 answers of 5 tokens in 2 s
        assert figures["prefill 512, ms"] == pytest.approx(250)

    def test_prompts_are_the_same_for_all_and_new_in_each_round(self):
        run = next(run for run in self.PLAN.runs(["adapters"]) if run.rows == 16)
        assert run.prompts(100, 1) == run.prompts(100, 1) != run.prompts(100, 2)
        assert len(set(run.names())) == 16
        assert all(3 <= token < 100 for prompt in run.prompts(100, 1) for token in prompt)

    def test_agreement_is_of_first_tokens(self):
        assert agreement([[1, 2], [3, 4]], [[1, 9], [5, 4]]) == 0.5


def test_an_entry_names_an_engine_and_what_it_computes_with():
    assert Entry.parse("adapterhub") == Entry("adapterhub", None, None)
    assert Entry.parse("peft:none:float32") == Entry("peft", "none", "float32")
    with pytest.raises(ValueError, match="not one of adapterhub, peft"):
        Entry.parse("other")


def test_contenders_answer_the_same_prompts_with_the_same_tokens(tmp_path: Path, capsys):
    """Ours and PEFT's, in float32, in processes of their own; vLLM's interpreter is not there."""
    kept = tmp_path / "results.json"
    main(
        [
            *("--models", "tiny", "--threads", "1", "--rank", "4", "--base", str(tmp_path)),
            *("--contenders", "adapterhub:none:float32", "peft:none:float32", "vllm"),
            *("--rounds", "1", "--tokens", "3", "--prompt", "4", "--prefill", "8"),
            *("--vllm-python", str(tmp_path / "none"), "--output", str(kept), "--json"),
        ]
    )
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(kept.read_text())
    ours, peft, vllm = found["results"]
    assert (ours["contender"], peft["contender"]) == ("adapterhub", "transformers, PEFT")
    for one in (ours, peft):
        assert list(one["figures"]) == found["titles"]
        assert one["about"]["weights"] == "float32"
        assert one["agreement"] == {"base": 1.0, "adapters": 1.0}
    assert "No such file" in vllm["missing"]
    assert (vllm["figures"], vllm["agreement"]) == ({}, {})

    main(["--results", str(kept), "--markdown"])
    page = capsys.readouterr().out
    assert page.count("\n| adapterhub | float32 | 1 |") == 1
    assert "vLLM was not measured: [Errno 2] No such file" in page


def test_two_threads_are_compared_with_one():
    def entry(threads: int, milliseconds: float) -> dict[str, object]:
        return {
            "model": "m",
            "contender": "c",
            "threads": threads,
            "missing": None,
            "about": {"weights": "nf4", "computes": "bfloat16"},
            "figures": {"1 row, ms": milliseconds},
        }

    machine = {"processor": "p", "cores": 2, "instructions": ["avx2"], "load": 0.0, "versions": {}}
    options = {"rank": 16, "prompt": 32, "tokens": 17, "rounds": 3}
    results = {"titles": ["1 row, ms"], "results": [entry(1, 30.0), entry(2, 20.0)]}
    page = markdown([{**results, "machine": machine, "options": options}])
    assert "| c | nf4, bfloat16 | 1 | 30 |\n| c | nf4, bfloat16 | 2 | 20 |" in page
    assert "**m: 2 threads over 1**" in page
    assert "| c | nf4, bfloat16 | 1.5 |" in page


class TestRatios:
    def test_worse_is_beyond_the_recorded_noise(self):
        recorded = {"quiet": Recorded(1.0, 0.01), "noisy": Recorded(1.0, 0.2)}
        assert worse({"quiet": 1.04, "noisy": 1.3, "new": 9.0}, recorded) == []
        assert worse({"quiet": 1.06, "noisy": 1.5}, recorded) == ["quiet", "noisy"]

    def test_recording_keeps_the_median_and_how_far_repetitions_are_apart(self):
        assert Recorded.of([1.0, 2.0, 2.2]) == Recorded(2.0, 0.5)

    def test_what_is_too_high_is_measured_again_and_the_best_counts(self):
        attempts = iter([{"a": 2.0}, {"a": 1.5}, {"a": 1.0}])
        assert check(lambda _: next(attempts), ["float32"], {"a": Recorded(1.0, 0.0)}) == {"a": 1.0}
        assert best_of([{"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 3.0}]) == {"a": 1.0, "b": 1.0}

    def test_it_gives_up_after_three(self):
        measured = []
        found = check(lambda name: measured.append(name) or {"a": 2.0}, ["x"], {"a": Recorded(1.0, 0.0)})
        assert (found, measured) == ({"a": 2.0}, ["x"] * ratios.ATTEMPTS)

    def test_recorded_then_compared(self, tmp_path: Path, capsys, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else it starts itself again
        file = tmp_path / "recorded.json"
        file.write_text(json.dumps({"other": {"ratios": {}}}))
        options = ["--shape", "tiny", "--rank", "4", "--rounds", "3", "--settings", "float32"]
        options += ["--recorded", str(file), "--base", str(tmp_path)]
        ratios.main([*options, "--record", "--repeat", "1"])
        everything = json.loads(file.read_text())
        (own,) = everything.keys() - {"other"}
        assert everything[own]["ratios"].keys() == {
            "float32, 1 rows over transformers",
            "float32, 1 rows with 1 adapters over none",
            "float32, 16 rows over transformers",
            "float32, 16 rows with 16 adapters over none",
            "float32, prefill of 512 over transformers",
        }
        for one in everything[own]["ratios"].values():
            assert one["ratio"] > 0
            one["ratio"] = 0.01  # no machine is so quick
        file.write_text(json.dumps(everything))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            ratios.main([*options, "--json"])
        assert ended.value.code == 1
        found = json.loads(capsys.readouterr().out)
        assert set(found["worse"]) == set(found["ratios"])
