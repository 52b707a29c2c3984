"""A comparison as a folder: one self-contained HTML page with charts, Markdown, CSV and JSON."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from adapterhub._files import check_writable_folder, os_errors_as, write_atomic
from adapterhub.engine.interface import DEFAULT_MAX_TOKENS
from adapterhub.errors import ExportError
from adapterhub.evaluation.bootstrap import Estimate
from adapterhub.evaluation.comparison import Comparison, Sampling
from adapterhub.reports import bar_chart, histogram, line_chart

REPORT_FILES = ("report.html", "report.md", "results.csv", "results.json")
_LENGTHS = ("tokens", "characters", "truncated")
MAX_PROMPTS_SHOWN = 50
"""Prompts whose answers the HTML page shows; the JSON has all."""


def write_report(comparison: Comparison, folder: str | Path) -> Path:
    """Writes `report.html`, `report.md`, `results.csv` and `results.json`, each whole or not at all.

    Args:
        comparison: From `compare`.
        folder: Where to; it is created, and files of these names are replaced.

    Returns:
        The path of the HTML page.

    Raises:
        ExportError: A file cannot be written.
        ConfigError: matplotlib is not installed.
    """
    contents = (
        html_report(comparison),
        markdown_report(comparison),
        csv_results(comparison),
        json_results(comparison),
    )
    folder = Path(folder)
    with os_errors_as(ExportError, "The report could not be written"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in zip(REPORT_FILES, contents, strict=True):
            # Half a surrogate pair, which JSON can hold, cannot be encoded.
            write_atomic(folder / name, content.encode("utf-8", "replace"))
    return folder / REPORT_FILES[0]


def check_report_folder(folder: Path) -> None:
    """Finds now what would keep a report from being written, since a comparison takes minutes; changes nothing.

    Raises:
        ExportError: The folder cannot be written.
        ConfigError: matplotlib is not installed.
    """
    check_writable_folder(folder, ExportError, f"The report's folder {str(folder)!r}")
    line_chart({})


def findings(comparison: Comparison) -> list[str]:
    """What the comparison says, a sentence each: perplexity first, then exact match and the scorer."""
    return [*_perplexity_findings(comparison), *_metric_findings(comparison)]


def results(comparison: Comparison) -> dict[str, Any]:
    """All of a comparison as JSON-ready fields."""
    content = {
        **asdict(comparison),
        "settings": comparison.settings.model_dump(mode="json"),
        "findings": findings(comparison),
    }
    content["answers"] = [
        {"contender": one.contender, **asdict(one.sampling), "answers": [asdict(a) for a in one.answers]}
        for one in comparison.answers
    ]
    content["metrics"] = list(_rows(comparison))
    return content


def json_results(comparison: Comparison) -> str:
    """The results as JSON; infinite perplexities are the text `Infinity`."""
    return json.dumps(_finite(results(comparison)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def csv_results(comparison: Comparison) -> str:
    """The figures as CSV: a row for each contender, setting and measure."""
    text = io.StringIO()
    columns = ("contender", "temperature", "top_p", "metric", "value", "low", "high", "count")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(_rows(comparison))
    return text.getvalue()


def markdown_report(comparison: Comparison) -> str:
    """The findings and the figures as Markdown."""
    lines = [f"# {comparison.adapter} compared with {', '.join(comparison.against)}", ""]
    lines += [f"- {finding}" for finding in findings(comparison)]
    lines += [f"- Warning: {warning}." for warning in comparison.warnings]
    lines += [
        "",
        *_markdown_table(*figures(comparison)),
        "",
        *(f"{line}  " for line in conditions(comparison)),
    ]
    return "\n".join(lines) + "\n"


def html_report(comparison: Comparison) -> str:
    """The findings, figures, charts and answers as one HTML page without scripts, which loads nothing."""
    from jinja2 import Environment

    source = files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    columns, rows = figures(comparison)
    shown = comparison.prompts[:MAX_PROMPTS_SHOWN]
    return (
        Environment(autoescape=True)
        .from_string(source)
        .render(
            comparison=comparison,
            findings=findings(comparison),
            columns=columns,
            rows=rows,
            charts=[(name, _data_uri(svg)) for name, svg in charts(comparison)],
            conditions=conditions(comparison),
            prompts=list(enumerate(shown)),
            sweep=[(one, [a for a in comparison.answers if a.sampling == one]) for one in _sweep(comparison)],
        )
    )


def figures(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """A table of all measures: the columns, and a row for each setting and measure."""
    columns = ["measure", "setting", *comparison.contenders]
    rows = []
    if comparison.perplexities:
        cells = [_shown(comparison.perplexities[name].estimate) for name in comparison.contenders]
        rows.append(["perplexity", "", *cells])
    for sampling in _sweep(comparison):
        names = dict.fromkeys(one.name for one in comparison.metrics)
        for name in names:
            found = [comparison.metric(contender, name, sampling) for contender in comparison.contenders]
            rows.append([_words(name), str(sampling), *(_shown(one.estimate) for one in found if one)])
    return columns, rows


def conditions(comparison: Comparison) -> list[str]:
    """How the figures were measured, a line each."""
    settings = comparison.settings
    environment = {name: value for name, value in comparison.environment.items() if value}
    lines = [
        f"Base {comparison.base}: {', '.join(f'{name} {value}' for name, value in environment.items())}.",
        *(f"{file.name}: sha256 {file.sha256}." for file in comparison.files),
        f"Answers of up to {settings.max_tokens or DEFAULT_MAX_TOKENS} tokens, seed {settings.seed}; "
        f"intervals: 95 %, {settings.resamples} bootstrap draws of records.",
    ]
    if comparison.truncated or comparison.dropped:
        lines.append(
            f"{comparison.truncated} of {comparison.records} held-out records were cut to "
            f"{comparison.settings.max_length} tokens, and {comparison.dropped} more left out."
        )
    return lines


def charts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """The charts, each with a text that describes it: SVG."""
    if comparison.perplexities:
        yield from _perplexity_charts(comparison)
    if comparison.metrics:
        yield from _answer_charts(comparison)


def _perplexity_charts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    estimates = {name: one.estimate for name, one in comparison.perplexities.items()}
    yield (
        "Perplexity of each contender",
        bar_chart(
            {"perplexity": {name: one.value for name, one in estimates.items()}},
            intervals={"perplexity": {name: (one.low, one.high) for name, one in estimates.items()}},
            title="Perplexity of held-out answers, with 95 % intervals",
        ),
    )
    yield (
        "Losses of the held-out records",
        histogram(
            {
                name: [loss / count for loss, count in zip(one.losses, one.tokens, strict=True)]
                for name, one in comparison.perplexities.items()
            },
            title="Loss of each held-out record",
            x_label="nats per answer token",
            y_label="records",
        ),
    )


def _answer_charts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    sweep, names = _sweep(comparison), [name for name in _metric_names(comparison) if name not in _LENGTHS]
    if len(comparison.settings.temperatures) > 1:
        for name in names:
            lines = dict(_lines_of_sweep(comparison, name))
            chart = line_chart(lines, title=_words(name).capitalize(), x_label="temperature")
            yield f"{_words(name)} by temperature", chart
    measured = [one for one in comparison.metrics if one.name in names and one.sampling == sweep[0]]
    by_contender: dict[str, dict[str, Estimate]] = {name: {} for name in comparison.contenders}
    for one in measured:
        by_contender[one.contender][_words(one.name)] = one.estimate
    chart = bar_chart(
        {name: {n: one.value for n, one in each.items()} for name, each in by_contender.items()},
        intervals={
            name: {n: (one.low, one.high) for n, one in each.items()} for name, each in by_contender.items()
        },
        title=f"Answers, {sweep[0]}, with 95 % intervals",
    )
    yield "Measures of the answers", chart
    lengths = {
        one.contender: [answer.tokens for answer in one.answers]
        for one in comparison.answers
        if one.sampling == sweep[0]
    }
    title = f"Length of answers, {sweep[0]}"
    yield "Lengths of the answers", histogram(lengths, title=title, x_label="tokens", y_label="answers")


def _lines_of_sweep(comparison: Comparison, name: str) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """A line for each contender and top-p; the greedy answers, which have none, begin each."""
    top_ps = comparison.settings.top_ps
    for contender in comparison.contenders:
        for top_p in top_ps:
            points = [
                (one.sampling.temperature, one.estimate.value)
                for one in comparison.metrics
                if (one.contender, one.name) == (contender, name)
                and (one.sampling.is_greedy or one.sampling.top_p == top_p)
            ]
            label = f"{contender}, top-p {top_p:g}" if len(top_ps) > 1 else contender
            yield label, sorted(points)


def _perplexity_findings(comparison: Comparison) -> Iterator[str]:
    for name, ratio in comparison.ratios.items():
        own, other = comparison.perplexities[comparison.adapter], comparison.perplexities[name].estimate
        yield (
            f"Perplexity on {comparison.files[0].name} ({comparison.records:,} records, {sum(own.tokens):,} answer "
            f"tokens): {_shown(own.estimate)}, that of {name} {_shown(other)}; {_change(ratio)}."
        )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _change(ratio: Estimate) -> str:
    """A ratio in words, with the interval's ends in the direction of the change."""
    word = "lower" if ratio.value < 1 else "higher"
    ends = sorted(
        abs(1 - end) if (end < 1) == (ratio.value < 1) else -abs(1 - end) for end in (ratio.low, ratio.high)
    )
    doubt = "" if (ratio.low < 1) == (ratio.high < 1) else ", so it may be chance"
    return f"{abs(1 - ratio.value):.1%} {word} (95 % interval {ends[0]:.1%} to {ends[1]:.1%}{doubt})"


def _metric_findings(comparison: Comparison) -> Iterator[str]:
    for name in _metric_names(comparison):
        if name in (*_LENGTHS, "repetition"):
            continue
        found = [one for contender in comparison.contenders if (one := comparison.metric(contender, name))]
        values = ", ".join(f"{one.contender} {_shown(one.estimate)}" for one in found)
        yield f"{_words(name).capitalize()}, {found[0].sampling}, n = {found[0].count:,}: {values}."


def _metric_names(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(one.name for one in comparison.metrics))


def _sweep(comparison: Comparison) -> list[Sampling]:
    return list(dict.fromkeys(one.sampling for one in comparison.answers))


def _rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for contender, perplexity in comparison.perplexities.items():
        yield _row(contender, None, "perplexity", perplexity.estimate, len(perplexity.losses))
    for other, ratio in comparison.ratios.items():
        count = len(comparison.perplexities[other].losses)
        yield _row(comparison.adapter, None, f"perplexity / {other}", ratio, count)
    for one in comparison.metrics:
        yield _row(one.contender, one.sampling, one.name, one.estimate, one.count)


def _row(
    contender: str, sampling: Sampling | None, name: str, estimate: Estimate, count: int
) -> dict[str, Any]:
    setting = asdict(sampling) if sampling else {"temperature": None, "top_p": None}
    return {"contender": contender, **setting, "metric": name, **asdict(estimate), "count": count}


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"


def _markdown_table(columns: list[str], rows: list[list[str]]) -> list[str]:
    table = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table]


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    match value:
        case dict():
            return {key: _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
        case float() if value != value or value in (float("inf"), float("-inf")):
            return str(value)
    return value
