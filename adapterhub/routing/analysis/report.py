"""A router's measures as one HTML file: no script, nothing fetched, pictures as inline SVG, light and dark.

Every text that comes from cards or requests passes `_text`, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from adapterhub.routing.analysis.evaluation import Evaluation, OperatingPoint, ReliabilityBin, evaluate
from adapterhub.routing.analysis.health import Finding
from adapterhub.routing.classifier.calibration import HeldOut
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.decision import RouteDecision
from adapterhub.routing.routes import OUT_OF_SCOPE

MAX_ROUTES = 30
"""Routes that the confusion matrix shows; of more, those that go wrong most often."""
_BASE, _OTHERS = "base", "others"
_LONGEST_LABEL = 22
_CELL = 30
_SIDE = 280
_MARGIN = 50

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2026; --soft: #667080; --line: #d9dde3; --paper: #ffffff;
  --right: #1f7a4d; --wrong: #c0392b; --mark: #2f5fb3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #9aa3b0; --line: #3a404a; --paper: #16181d;
  --right: #4cc38a; --wrong: #ff7b6b; --mark: #7da7f0; } }
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
table { border-collapse: collapse; } th, td { padding: .2rem .9rem .2rem 0; text-align: left;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
figure { margin: 0; overflow-x: auto; } .pictures { display: flex; flex-wrap: wrap; gap: 2rem; }
.soft { color: var(--soft); } svg text { fill: var(--ink); font-size: 12px; } svg .soft { fill: var(--soft); }
.line { stroke: var(--line); fill: none; } .ideal { stroke: var(--soft); stroke-dasharray: 4; fill: none; }
.curve { stroke: var(--mark); fill: none; stroke-width: 2; }
.dot { fill: var(--mark); fill-opacity: .7; } .right { fill: var(--right); } .wrong { fill: var(--wrong); }
"""


def evaluate_held_out(model: RouterModel) -> Evaluation:
    """Measures a fit by what it made of its own examples, each as rows saw it that were fitted without it.

    Confidences and thresholds were chosen on these same scores, so both look a little better than they are; and a
    lead that the policy may ask for over the second route is not looked at, since only the best score is kept.
    """
    inside: dict[str, list[RouteDecision]] = {}
    outside: list[RouteDecision] = []
    for one in model.held_out:
        found = outside if one.route == OUT_OF_SCOPE else inside.setdefault(one.route, [])
        found.append(_decision(model, one))
    return evaluate(inside, outside)


def measures(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What was measured, for people: names and values."""
    return [
        ("requests", str(evaluation.count)),
        ("out-of-scope requests", str(evaluation.out_of_scope)),
        ("best route is right", _share(evaluation.accuracy)),
        ("retention, not sent to the base", _share(evaluation.retention)),
        ("selective accuracy, of those", _share(evaluation.selective_accuracy)),
        ("sent to the right adapter", _share(evaluation.routed_accuracy)),
        ("out-of-scope sent to the base", _share(evaluation.out_of_scope_recall)),
        ("AUROC, in scope against out", _share(evaluation.auroc)),
        ("calibration error (ECE)", _share(evaluation.calibration_error)),
    ]


def html_report(evaluation: Evaluation, findings: Sequence[Finding] = (), *, note: str = "") -> str:
    """Draws measures as a page that stands alone.

    Args:
        evaluation: What was measured.
        findings: What is wrong with the routes.
        note: Where the measures come from, in a sentence.
    """
    pictures = [
        ("Confidence and accuracy", _reliability(evaluation.reliability)),
        ("Retention against out-of-scope recall", _trade(evaluation)),
    ]
    drawn = "".join(f"<section><h2>{title}</h2><figure>{body}</figure></section>" for title, body in pictures)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Router</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n<h1>Router</h1><p class=soft>{_text(note)}</p>\n"
        f"{_table(('measure', 'value'), measures(evaluation))}\n"
        f"<h2>Health</h2>{_health(findings)}\n"
        f'<div class="pictures">{drawn}</div>\n'
        f"<h2>Where requests went</h2><figure>{_matrix(evaluation.confusion)}</figure>\n"
        f"<h2>Routes</h2>{_routes(evaluation.confusion)}\n</body></html>\n"
    )


def _decision(model: RouterModel, one: HeldOut) -> RouteDecision:
    curve = model.calibration.curve(one.script)
    own = model.routes[model.names.index(one.best)].threshold if one.best in model.names else None
    threshold = curve.threshold if own is None else own
    sure = (confidence := curve.confidence(one.score)) >= threshold
    return RouteDecision(
        adapter=one.best if sure else None,
        confidence=confidence,
        threshold=threshold,
        reason="matched" if sure else "below_threshold",
        scores={one.best: one.score},
        score=one.score,
        fallback=not sure,
        script=one.script,
    )


def _text(text: str) -> str:
    # Half a character, as broken JSON can hold, has no place in UTF-8.
    return escape(text.encode("utf-8", "replace").decode())


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1%}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def _health(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p>Nothing was found.</p>"
    items = (
        f"<li>{_text(one.message)}{''.join(f'<br><q class=soft>{_text(text)}</q>' for text in one.examples)}</li>"
        for one in findings
    )
    return f"<ul>{''.join(items)}</ul>"


# Pictures


def _reliability(ranges: Sequence[ReliabilityBin]) -> str:
    if not ranges:
        return "<p class=soft>There was nothing to measure it on.</p>"
    most = max(one.count for one in ranges)
    dots = "".join(
        f"<circle class=dot cx={_x(one.confidence)} cy={_y(one.accuracy)} r={3 + 7 * math.sqrt(one.count / most):.1f}>"
        f"<title>{one.count} requests: confidence {one.confidence:.1%}, right {one.accuracy:.1%}</title></circle>"
        for one in ranges
    )
    diagonal = f'<path class=ideal d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>'
    return _plot(diagonal + dots, "confidence", "best route is right")


def _trade(evaluation: Evaluation) -> str:
    if not evaluation.curve or evaluation.retention is None or evaluation.out_of_scope_recall is None:
        return "<p class=soft>There were no out-of-scope requests, or none in scope, to measure it on.</p>"
    line = f'<path class=curve d="{_path(evaluation.curve)}"/>'
    place = f"cx={_x(evaluation.retention)} cy={_y(evaluation.out_of_scope_recall)}"
    now = f"retention {evaluation.retention:.1%}, recall {evaluation.out_of_scope_recall:.1%}"
    dot = f"<circle class=dot {place} r=6><title>as it is set: {now}</title></circle>"
    return _plot(line + dot, "retention", "out-of-scope sent to the base")


def _path(curve: Sequence[OperatingPoint]) -> str:
    return "M" + "L".join(f"{_x(one.retention)} {_y(one.out_of_scope_recall)}" for one in curve)


def _x(share: float) -> str:
    return f"{_MARGIN + share * _SIDE:.1f}"


def _y(share: float) -> str:
    return f"{10 + (1 - share) * _SIDE:.1f}"


def _plot(body: str, across: str, up: str) -> str:
    """A square picture of shares against shares."""
    ticks = "".join(
        f'<path class=line d="M{_x(share)} {_y(0)}V{_y(1)}M{_x(0)} {_y(share)}H{_x(1)}"/>'
        f"<text class=soft x={_x(share)} y={_SIDE + 26} text-anchor=middle>{share:.0%}</text>"
        f'<text class=soft x={_MARGIN - 6} y={_y(share)} dy=".3em" text-anchor=end>{share:.0%}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    middle = _SIDE / 2
    names = (
        f"<text x={_MARGIN + middle} y={_SIDE + 44} text-anchor=middle>{across}</text>"
        f'<text transform="translate(12 {10 + middle}) rotate(-90)" text-anchor=middle>{up}</text>'
    )
    width, height = _MARGIN + _SIDE + 24, _SIDE + 52
    return f'<svg viewBox="0 0 {width} {height}" width={width} height={height} role=img>{ticks}{names}{body}</svg>'


def _matrix(confusion: Mapping[str, Mapping[str, int]]) -> str:
    """Rows are right adapters, columns are where their requests went; the darker, the larger the share of the row."""
    if not confusion:
        return "<p class=soft>There were no requests for any adapter.</p>"
    shown = sorted(sorted(confusion, key=lambda name: (_right(confusion, name), name))[:MAX_ROUTES])
    named = sorted({*confusion, *(name for row in confusion.values() for name in row)} - {""})
    columns = [*named, _BASE] if len(named) <= MAX_ROUTES else [*shown, _OTHERS, _BASE]
    left, top = _CELL * 6, _CELL * 5
    cells = [
        _cell(left + _CELL * across, top + _CELL * down, name, column, count, sum(confusion[name].values()))
        for down, name in enumerate(shown)
        for across, (column, count) in enumerate(_folded(confusion[name], columns))
        if count
    ]
    rows = [_label(left - 8, top + _CELL * (down + 0.65), name, 0) for down, name in enumerate(shown)]
    heads = [_label(left + _CELL * (at + 0.6), top - 8, name, -60) for at, name in enumerate(columns)]
    width, height = left + _CELL * (len(columns) + 1) + 60, top + _CELL * len(shown) + 4
    some = f"<p class=soft>The {len(shown)} of {len(confusion)} routes that go wrong most often.</p>"
    drawn = "".join([*rows, *heads, *cells])
    svg = f'<svg viewBox="0 0 {width} {height}" width={width} height={height} role=img>{drawn}</svg>'
    return (some if len(confusion) > len(shown) else "") + svg


def _folded(row: Mapping[str, int], columns: Sequence[str]) -> list[tuple[str, int]]:
    """A row's counts by column; what went to no column of its own is with the others."""
    base, names = row.get("", 0), [name for name in columns if name not in (_OTHERS, _BASE)]
    counts = {name: row.get(name, 0) for name in names}
    counts |= {_OTHERS: sum(row.values()) - base - sum(counts.values()), _BASE: base}
    return [(name, counts[name]) for name in columns]


def _cell(x: float, y: float, name: str, column: str, count: int, of: int) -> str:
    kind = "right" if name == column else "wrong"
    told = f"{_text(name)} to {_text(column)}: {count} of {of} ({count / of:.0%})"
    return (
        f"<g><title>{told}</title><rect class={kind} x={x} y={y} width={_CELL - 1} height={_CELL - 1} "
        f"fill-opacity={0.12 + 0.6 * count / of:.2f}></rect>"
        f"<text x={x + _CELL / 2} y={y + _CELL * 0.65} text-anchor=middle>{count}</text></g>"
    )


def _label(x: float, y: float, name: str, turn: int) -> str:
    short = name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…"
    anchor = "start" if turn else "end"
    place = f'transform="translate({x:.1f} {y:.1f}) rotate({turn})" text-anchor={anchor}'
    return f"<text {place}>{_text(short)}<title>{_text(name)}</title></text>"


def _right(confusion: Mapping[str, Mapping[str, int]], name: str) -> float:
    row = confusion[name]
    return row.get(name, 0) / max(sum(row.values()), 1)


def _routes(confusion: Mapping[str, Mapping[str, int]]) -> str:
    """A row for each route, the worst first."""
    rows = []
    for name in sorted(confusion, key=lambda name: (_right(confusion, name), name)):
        row, count = confusion[name], sum(confusion[name].values())
        wrong = {other: number for other, number in row.items() if number and other not in (name, "")}
        rival = min(wrong, key=lambda other: (-wrong[other], other)) if wrong else ""
        shares = f"{_right(confusion, name):.0%}", f"{row.get('', 0) / max(count, 1):.0%}"
        rows.append((name, str(count), *shares, f"{rival} ({wrong[rival]})" if rival else ""))
    columns = ("route", "requests", "went right", "sent to the base", "most often taken by")
    return _table(columns, rows)
