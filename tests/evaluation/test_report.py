"""The report's files, and the figures on the card."""

import csv
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from adapterhub import AdapterRegistry
from adapterhub.errors import ExportError, InvalidRequestError
from adapterhub.evaluation import (
    Comparison,
    ComparisonSettings,
    Estimate,
    EvaluationPrompt,
    Metric,
    Perplexity,
    record_on_card,
    write_report,
)
from adapterhub.evaluation.comparison import Answer, Answers
from adapterhub.evaluation.data import EvaluationFile
from adapterhub.evaluation.report import (
    REPORT_FILES,
    csv_results,
    findings,
    html_report,
    json_results,
    markdown_report,
)

SETTINGS = ComparisonSettings(temperatures=(0, 1), resamples=100)
GREEDY, WARM = SETTINGS.sweep
HOSTILE = "<script>alert(1)</script> | $x$ \ud800"


def answers(contender: str, text: str) -> list[Answers]:
    return [Answers(contender, sampling, (Answer(text, 3, True, 0.25),)) for sampling in (GREEDY, WARM)]


def metrics(contender: str, match: float) -> list[Metric]:
    return [
        Metric(contender, sampling, name, Estimate(value, value - 0.1, value + 0.1), 1)
        for sampling in (GREEDY, WARM)
        for name, value in (("exact_match", match), ("tokens", 3.0), ("repetition", 0.25))
    ]


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(
        adapter="json@1",
        against=("base",),
        base="tiny",
        environment={"quantization": None, "compute_dtype": "float32"},
        files=(EvaluationFile("held.jsonl", "ab12"),),
        settings=SETTINGS,
        records=2,
        truncated=1,
        dropped=0,
        perplexities={
            "base": Perplexity(Estimate(20.0, 18.0, 22.0), (6.0, 6.0), (2, 2)),
            "json@1": Perplexity(Estimate(10.0, 9.0, 11.0), (4.0, 5.0), (2, 2)),
        },
        ratios={"base": Estimate(0.5, 0.45, 0.58)},
        prompts=(EvaluationPrompt(({"role": "user", "content": HOSTILE},), "the reference"),),
        answers=(*answers("base", "from the base"), *answers("json@1", HOSTILE)),
        metrics=(*metrics("base", 0.25), *metrics("json@1", 0.75)),
        warnings=("the data is doubtful",),
    )


def test_the_findings_say_by_how_much_and_how_sure(comparison: Comparison):
    assert findings(comparison) == [
        "Perplexity on held.jsonl (2 records, 4 answer tokens): 10 [9, 11], that of base 20 [18, 22]; "
        "50.0% lower (95 % interval 42.0% to 55.0%).",
        "Exact match, greedy, n = 1: base 0.25 [0.15, 0.35], json@1 0.75 [0.65, 0.85].",
    ]


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Estimate(1.2, 1.1, 1.3), "20.0% higher (95 % interval 10.0% to 30.0%)"),
        (Estimate(0.9, 0.8, 1.1), "10.0% lower (95 % interval -10.0% to 20.0%, so it may be chance)"),
    ],
)
def test_what_may_be_chance_is_called_so(comparison: Comparison, ratio: Estimate, words: str):
    assert words in findings(replace(comparison, ratios={"base": ratio}))[0]


class Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_stands_alone_and_shows_texts_as_texts(comparison: Comparison):
    html = html_report(comparison)
    page = Page(html)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert page.tags.count("img") == len(page.sources) == 6
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    for text in (
        *findings(comparison),
        "the data is doubtful",
        "from the base",
        "the reference",
        "[cut off]",
    ):
        assert text in html


def test_the_page_says_how_many_prompts_it_leaves_out(comparison: Comparison):
    many = replace(
        comparison,
        prompts=comparison.prompts * 60,
        answers=tuple(replace(one, answers=one.answers * 60) for one in comparison.answers),
    )
    html = re.sub(r"\s+", " ", html_report(many))
    assert "The first 50 of 60 prompts" in html
    assert html.count("from the base") == 2 * 50
    assert "The first" not in html_report(comparison)


def test_the_rows_of_the_csv_are_the_figures(comparison: Comparison):
    rows = list(csv.DictReader(io.StringIO(csv_results(comparison))))
    assert [tuple(row.values()) for row in rows[:4]] == [
        ("base", "", "", "perplexity", "20.0", "18.0", "22.0", "2"),
        ("json@1", "", "", "perplexity", "10.0", "9.0", "11.0", "2"),
        ("json@1", "", "", "perplexity / base", "0.5", "0.45", "0.58", "2"),
        ("base", "0.0", "1.0", "exact_match", "0.25", "0.15", "0.35", "1"),
    ]
    assert len(rows) == 3 + 12


def test_the_json_has_everything(comparison: Comparison):
    content = json.loads(json_results(comparison))
    assert content["perplexities"]["json@1"]["losses"] == [4.0, 5.0]
    assert content["findings"] == findings(comparison)
    assert content["settings"]["temperatures"] == [0.0, 1.0]
    assert [(one["contender"], one["temperature"], one["answers"][0]["tokens"]) for one in content["answers"]] == [
        ("base", 0.0, 3), ("base", 1.0, 3), ("json@1", 0.0, 3), ("json@1", 1.0, 3),
    ]  # fmt: skip


def test_an_infinite_perplexity_is_a_text_in_the_json_and_on_the_card(comparison: Comparison):
    infinite = Perplexity(Estimate(math.inf, math.inf, math.inf), (1e6,), (1,))
    changed = replace(comparison, perplexities={**comparison.perplexities, "base": infinite})
    assert json.loads(json_results(changed))["perplexities"]["base"]["estimate"]["value"] == "inf"
    assert "<svg" not in html_report(changed)  # it is drawn all the same, as an image


def test_the_markdown_has_a_table(comparison: Comparison):
    assert markdown_report(comparison).splitlines()[:9] == [
        "# json@1 compared with base",
        "",
        f"- {findings(comparison)[0]}",
        f"- {findings(comparison)[1]}",
        "- Warning: the data is doubtful.",
        "",
        "| measure | setting | base | json@1 |",
        "| --- | --- | --- | --- |",
        "| perplexity |  | 20 [18, 22] | 10 [9, 11] |",
    ]


def test_the_report_is_written_whole(comparison: Comparison, tmp_path: Path):
    page = write_report(comparison, tmp_path / "new" / "report")
    assert page == tmp_path / "new" / "report" / "report.html"
    assert sorted(path.name for path in page.parent.iterdir()) == sorted(REPORT_FILES)
    before = {path: path.read_bytes() for path in page.parent.iterdir()}
    write_report(comparison, page.parent)
    assert {path: path.read_bytes() for path in page.parent.iterdir()} == before


def test_a_report_that_cannot_be_written_is_an_error(comparison: Comparison, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="could not be written"):
        write_report(comparison, tmp_path / "file")


@pytest.fixture
def registry(tmp_path: Path, tiny_base: Path, tiny_adapters: dict[str, Path]) -> AdapterRegistry:
    registry = AdapterRegistry(tmp_path)
    other = {"task_type": "text-generation", "dataset_name": "x", "metric_type": "loss", "metric_value": 1.5}
    registry.register("json", tiny_adapters["json"], base=tiny_base, evaluation=[other])
    return registry


def test_the_figures_on_the_card_replace_earlier_ones_on_the_same_data(
    comparison: Comparison, registry: AdapterRegistry
):
    better = replace(
        comparison,
        perplexities={
            **comparison.perplexities,
            "json@1": Perplexity(Estimate(8.0, 7.0, 9.0), (4.0, 4.0), (2, 2)),
        },
    )
    for one in (comparison, better):
        card = record_on_card(one, registry)
    assert card == registry.get("json@1")
    assert [(one.metric_type, one.metric_value) for one in card.evaluation] == [
        ("loss", 1.5), ("perplexity", 8.0), ("exact_match", 0.75), ("repetition", 0.25),
    ]  # fmt: skip
    assert card.evaluation[1].metric_name == (
        "perplexity of the answers' tokens; 95 % interval 7 to 9; base 20"
    )
    assert (card.evaluation[1].dataset_name, card.evaluation[1].dataset_type) == ("held.jsonl", "sha256:ab12")
    assert card.evaluation[2].metric_name == (
        "exact match, greedy, n = 1; 95 % interval 0.65 to 0.85; base 0.25"
    )


def test_a_blend_has_no_card(comparison: Comparison, registry: AdapterRegistry):
    with pytest.raises(InvalidRequestError):
        record_on_card(replace(comparison, adapter="json@1:0.5+code@1:0.5"), registry)
