"""A router's evaluation as one HTML file, from a jinja2 template that escapes every text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from adapterhub.routing.analysis.evaluation import Evaluation, ReliabilityBin, evaluate
from adapterhub.routing.analysis.health import Finding
from adapterhub.routing.classifier.calibration import HeldOut
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.decision import RouteDecision
from adapterhub.routing.routes import OUT_OF_SCOPE

MAX_ROUTES = 30
"""Routes in the confusion matrix; of more, those with the lowest accuracy."""
_BASE, _OTHERS = "base", "others"
_MAX_LABEL_CHARS = 22
_CELL = 30
_SIDE = 280
_MARGIN = 50


def evaluate_held_out(model: RouterModel) -> Evaluation:
    """Evaluates a fit on its own examples, by their held-out scores.

    Calibration used the same scores, so the result is slightly optimistic. The policy's margin is ignored, since only
    the best score of a held-out request is stored.
    """
    inside: dict[str, list[RouteDecision]] = {}
    outside: list[RouteDecision] = []
    for one in model.held_out:
        found = outside if one.route == OUT_OF_SCOPE else inside.setdefault(one.route, [])
        found.append(_decision(model, one))
    return evaluate(inside, outside)


def measures(evaluation: Evaluation) -> list[tuple[str, str]]:
    """The metrics as names and values to print."""
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
    """Renders an evaluation as a page without scripts that loads nothing from elsewhere.

    Args:
        evaluation: The evaluation.
        findings: Problems of the routes.
        note: Where the evaluation comes from, in a sentence.
    """
    from jinja2 import Environment

    source = files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = (
        Environment(autoescape=True)
        .from_string(source)
        .render(
            note=note,
            measures=measures(evaluation),
            findings=findings,
            bins=_reliability(evaluation.reliability),
            **_trade_off(evaluation),
            **_axes(),
            matrix=_matrix(evaluation.confusion),
            routes=_routes(evaluation.confusion),
        )
    )
    # Half a surrogate pair, which JSON can hold, cannot be encoded.
    return page.encode("utf-8", "replace").decode()


def _decision(model: RouterModel, one: HeldOut) -> RouteDecision:
    curve = model.calibration.curve(one.script)
    own = model.routes[model.names.index(one.best)].threshold if one.best in model.names else None
    threshold = curve.threshold if own is None else own
    accepted = (confidence := curve.confidence(one.score)) >= threshold
    return RouteDecision(
        adapter=one.best if accepted else None,
        confidence=confidence,
        threshold=threshold,
        reason="matched" if accepted else "below_threshold",
        scores={one.best: one.score},
        score=one.score,
        fallback=not accepted,
        script=one.script,
    )


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1%}"


# Plots of shares against shares


def _x(share: float) -> str:
    return f"{_MARGIN + share * _SIDE:.1f}"


def _y(share: float) -> str:
    return f"{10 + (1 - share) * _SIDE:.1f}"


def _axes() -> dict[str, Any]:
    return {
        "ticks": [
            {"x": _x(share), "y": _y(share), "label": f"{share:.0%}"} for share in (0, 0.25, 0.5, 0.75, 1)
        ],
        "left": _x(0),
        "right": _x(1),
        "bottom": _y(0),
        "top": _y(1),
        "margin": _MARGIN,
        "side": _SIDE,
        "plot_width": _MARGIN + _SIDE + 24,
        "plot_height": _SIDE + 52,
    }


def _reliability(bins: Sequence[ReliabilityBin]) -> list[dict[str, str]]:
    """A dot for each bin, its area by the number of requests."""
    largest = max((one.count for one in bins), default=0)
    return [
        {
            "x": _x(one.confidence),
            "y": _y(one.accuracy),
            "radius": f"{3 + 7 * math.sqrt(one.count / largest):.1f}",
            "title": f"{one.count} requests: confidence {one.confidence:.1%}, right {one.accuracy:.1%}",
        }
        for one in bins
    ]


def _trade_off(evaluation: Evaluation) -> dict[str, Any]:
    """The curve over all thresholds, and the present operating point."""
    retention, recall = evaluation.retention, evaluation.out_of_scope_recall
    if not evaluation.curve or retention is None or recall is None:
        return {"curve": None, "present": None}
    points = "L".join(f"{_x(one.retention)} {_y(one.out_of_scope_recall)}" for one in evaluation.curve)
    title = f"present thresholds: retention {retention:.1%}, recall {recall:.1%}"
    return {"curve": f"M{points}", "present": {"x": _x(retention), "y": _y(recall), "title": title}}


# The confusion matrix


def _matrix(confusion: Mapping[str, Mapping[str, int]]) -> dict[str, Any] | None:
    """Labels in rows, predictions in columns; the darker a cell, the larger its share of the row."""
    if not confusion:
        return None
    shown = sorted(_worst_first(confusion)[:MAX_ROUTES])
    named = sorted({*confusion, *(name for row in confusion.values() for name in row)} - {""})
    columns = [*named, _BASE] if len(named) <= MAX_ROUTES else [*shown, _OTHERS, _BASE]
    left, top = _CELL * 6, _CELL * 5
    rows = [_label(left - 8, top + _CELL * (down + 0.65), name, 0) for down, name in enumerate(shown)]
    heads = [_label(left + _CELL * (across + 0.6), top - 8, name, -60) for across, name in enumerate(columns)]
    cells = [
        _cell(left + _CELL * across, top + _CELL * down, name, column, count, sum(confusion[name].values()))
        for down, name in enumerate(shown)
        for across, (column, count) in enumerate(_by_column(confusion[name], columns))
        if count
    ]
    omitted = f"The {len(shown)} of {len(confusion)} routes with the lowest accuracy."
    return {
        "width": left + _CELL * (len(columns) + 1) + 60,
        "height": top + _CELL * len(shown) + 4,
        "labels": [*rows, *heads],
        "cells": cells,
        "omitted": omitted if len(confusion) > len(shown) else "",
    }


def _by_column(row: Mapping[str, int], columns: Sequence[str]) -> list[tuple[str, int]]:
    """A row's counts by column; predictions without a column count as others."""
    base, names = row.get("", 0), [name for name in columns if name not in (_OTHERS, _BASE)]
    counts = {name: row.get(name, 0) for name in names}
    counts |= {_OTHERS: sum(row.values()) - base - sum(counts.values()), _BASE: base}
    return [(name, counts[name]) for name in columns]


def _cell(x: float, y: float, name: str, column: str, count: int, total: int) -> dict[str, Any]:
    return {
        "title": f"{name} to {column}: {count} of {total} ({count / total:.0%})",
        "kind": "right" if name == column else "wrong",
        "x": x,
        "y": y,
        "size": _CELL - 1,
        "opacity": f"{0.12 + 0.6 * count / total:.2f}",
        "text_x": x + _CELL / 2,
        "text_y": y + _CELL * 0.65,
        "count": count,
    }


def _label(x: float, y: float, name: str, angle: int) -> dict[str, Any]:
    return {
        "x": f"{x:.1f}",
        "y": f"{y:.1f}",
        "angle": angle,
        "anchor": "start" if angle else "end",
        "short": name if len(name) <= _MAX_LABEL_CHARS else f"{name[: _MAX_LABEL_CHARS - 1]}…",
        "name": name,
    }


def _worst_first(confusion: Mapping[str, Mapping[str, int]]) -> list[str]:
    return sorted(confusion, key=lambda name: (_accuracy(confusion, name), name))


def _accuracy(confusion: Mapping[str, Mapping[str, int]], name: str) -> float:
    row = confusion[name]
    return row.get(name, 0) / max(sum(row.values()), 1)


def _routes(confusion: Mapping[str, Mapping[str, int]]) -> list[tuple[str, ...]]:
    """A row for each route, the lowest accuracy first."""
    rows: list[tuple[str, ...]] = []
    for name in _worst_first(confusion):
        row, count = confusion[name], sum(confusion[name].values())
        wrong = {other: number for other, number in row.items() if number and other not in (name, "")}
        rival = min(wrong, key=lambda other: (-wrong[other], other)) if wrong else ""
        shares = f"{_accuracy(confusion, name):.0%}", f"{row.get('', 0) / max(count, 1):.0%}"
        rows.append((name, str(count), *shares, f"{rival} ({wrong[rival]})" if rival else ""))
    return rows
